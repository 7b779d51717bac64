#!/usr/bin/env python3
"""libskv.so exports exactly the functions that client/skv.h declares, and the Python package knows
each of them."""

import argparse
import pathlib
import re
import subprocess
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    options = parser.parse_args()
    header = (options.source / "client/skv.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^SKV_API [^;]*?\b(skv_\w+)\(", header, re.M))
    listing = subprocess.run(["nm", "-D", "--defined-only", options.library], check=True,
                             capture_output=True, text=True).stdout
    exported = {line.split()[2].split("@")[0] for line in listing.splitlines()
                if line.split()[1] != "A"}
    package = (options.source / "client/python/skv/_abi.py").read_text(encoding="utf-8")
    known = set(re.findall(r'"(skv_\w+)": \[', package)) | set(re.findall(r"lib\.(skv_\w+)\.restype",
                                                                       package))
    problems = [f"exported, not declared: {name}" for name in sorted(exported - declared)]
    problems += [f"declared, not exported: {name}" for name in sorted(declared - exported)]
    problems += [f"declared, not in _abi.py: {name}" for name in sorted(declared - known)]
    problems += [f"in _abi.py, not declared: {name}" for name in sorted(known - declared)]
    for problem in problems:
        print(problem)
    print(f"{len(declared)} functions, {len(problems)} problems")
    return 1 if problems or not declared else 0


if __name__ == "__main__":
    sys.exit(main())
