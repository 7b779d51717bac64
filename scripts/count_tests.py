#!/usr/bin/env python3
"""Sums JUnit files of ctest and prints one line: 'N passed, N failed, N skipped'. Skips are listed."""

import re
import sys
import xml.etree.ElementTree as ElementTree


def reason(case):
    """Why a case was skipped: what GTEST_SKIP or a script said, else what ctest says."""
    said = case.findtext("system-out") or ""
    for pattern in (r"Skipped\n(.+)", r"skipped: (.+)"):
        if found := re.search(pattern, said):
            return found.group(1).strip()
    node = case.find("skipped")
    return (node.get("message") if node is not None else "") or "no reason given"


def main(paths):
    passed = failed = 0
    skipped = {}
    for path in paths:
        # A test that was repeated is there once per run; it counts once, as what it was in the end.
        cases = {case.get("name"): case for case in ElementTree.parse(path).getroot().iter("testcase")}
        for name, case in cases.items():
            status = case.get("status")
            if status == "run":
                passed += 1
            elif status in ("notrun", "disabled"):
                skipped.setdefault(reason(case), []).append(name)
            else:
                failed += 1
    for why, names in sorted(skipped.items()):
        print(f"skipped {len(names)}: {why}: {', '.join(sorted(set(names))[:8])}")
    print(f"{passed} passed, {failed} failed, {sum(map(len, skipped.values()))} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
