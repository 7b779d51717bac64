#!/usr/bin/env python3
"""Sums JUnit files of ctest and prints one line: 'N passed, N failed, N skipped'. Skips are listed."""

import sys
import xml.etree.ElementTree as ElementTree


def main(paths):
    passed = failed = 0
    skipped = {}
    for path in paths:
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            status = case.get("status")
            if status == "run":
                passed += 1
            elif status in ("notrun", "disabled"):
                node = case.find("skipped")
                why = (node.get("message") if node is not None else "") or ""
                skipped.setdefault(why, []).append(case.get("name"))
            else:
                failed += 1
    for why, names in sorted(skipped.items()):
        print(f"skipped {len(names)}: {why or 'no reason given'}: {', '.join(sorted(set(names))[:8])}")
    print(f"{passed} passed, {failed} failed, {sum(map(len, skipped.values()))} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
