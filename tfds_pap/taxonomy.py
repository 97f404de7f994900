"""Bethesda classes in order of severity, the authors' folder digits, and the window they read.

The order of severity holds everywhere in this project; the digits of the authors' trees are
translated here and nowhere else.
"""

#: Stage 2, in order of severity (The Bethesda System).
STAGE2_CLASSES = ("NILM", "LSIL", "HSIL", "SCC")

#: Stage 1; the positive class comes last.
STAGE1_CLASSES = ("background", "cell")

#: ``DB_3/{train,validation}/<digit>``.
DB3_FOLDERS = {"0": "cell", "1": "background"}

#: ``DB_4/{train,validation}/<digit>``; the digits are not in order of severity.
DB4_FOLDERS = {"1": "HSIL", "2": "LSIL", "3": "NILM", "4": "SCC"}

#: Side of the region of interest that both stages read, in pixels of a field 1,280 px wide.
ROI_SIZE = 150

#: The authors' trees and what their folders mean.
TREE_FOLDERS = {"DB_3": DB3_FOLDERS, "DB_4": DB4_FOLDERS}
