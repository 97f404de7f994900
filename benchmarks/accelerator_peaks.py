"""What a chip computes at most in dense bfloat16, by the name that its driver gives it."""

#: Part of the name -> (TFLOP/s without sparsity, source). The first that fits counts.
PEAKS = {
    "H100 PCIe": (756.0, "NVIDIA H100 data sheet"),
    "H100 NVL": (835.0, "NVIDIA H100 data sheet"),
    "H100": (989.4, "NVIDIA H100 data sheet (SXM)"),
    "H200": (989.4, "NVIDIA H200 data sheet (SXM)"),
    "A100": (312.0, "NVIDIA A100 data sheet"),
    "A10": (125.0, "NVIDIA A10 data sheet"),
    "L40S": (362.0, "NVIDIA L40S data sheet"),
    "L40": (181.0, "NVIDIA L40 data sheet"),
    "L4": (121.0, "NVIDIA L4 data sheet"),
    "TPU v4": (275.0, "Google Cloud documentation"),
    "TPU v5 lite": (197.0, "Google Cloud documentation"),
    "TPU v5p": (459.0, "Google Cloud documentation"),
    "TPU v6 lite": (918.0, "Google Cloud documentation"),
}


def peak(device: str) -> tuple[float | None, str]:
    """Returns TFLOP/s and source; None and "unknown" where it is not in the table.

    Args:
        device: As `DevicePolicy.device` names it.

    Example:
        >>> peak("NVIDIA H100 80GB HBM3")
        (989.4, 'NVIDIA H100 data sheet (SXM)')
        >>> peak("NVIDIA L40")
        (181.0, 'NVIDIA L40 data sheet')
    """
    return next((known for name, known in PEAKS.items() if name in device), (None, "unknown"))
