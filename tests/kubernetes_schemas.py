"""Kubernetes' own schemas of what it takes, of an old release and of a new one."""

import kubernetes_validate

VERSIONS = ("1.27", "1.37")


def check(document):
    """Raises `kubernetes_validate.ValidationError` where a field is unknown, missing or wrong."""
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)
