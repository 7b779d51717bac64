#!/usr/bin/env python3
"""Checks what the map of the tree promises.

includes      who may include whom (docs/architecture.md "Map"), and which system library lives where
tests_built   every *_test.cc and *_test.py is part of a program or a ctest
words         marks of unfinished work
snippets      code shown in documents equals the marked lines of the test it names
"""

import argparse
import json
import pathlib
import re
import sys
import textwrap

# folder of the includer -> prefixes it may include (its own folder is always allowed).
ARROWS = {
    "ipc/types": [],
    "ipc/identity": ["ipc/types"],
    "ipc/layout": ["ipc/types", "ipc/identity"],
    "ipc": ["ipc/"],
    "kernels": ["ipc/types", "ipc/identity", "ipc/layout"],
    "tiers/worker": ["ipc/", "tiers/", "kernels/"],
    "tiers": ["ipc/types", "ipc/identity", "ipc/layout", "ipc/shared_memory.h", "ipc/unique_fd.h", "kernels/",
              "tiers/worker/"],
    "client": ["ipc/", "kernels/"],
    "client/gpu": ["ipc/", "client/", "kernels/"],
    "daemon/skvctl": ["ipc/", "client/"],
    "daemon": ["ipc/", "tiers/", "kernels/", "daemon/"],
    "tests": ["ipc/", "tiers/", "kernels/", "daemon/", "client/", "tests/"],
}
# system header prefix -> folders that may include it (tests may include all).
HOMES = {
    "uv.h": ["daemon"],
    "liburing.h": ["tiers"],
    "boost/interprocess/": ["ipc", "tiers"],
    "cuda": ["kernels", "tiers", "client/gpu"],
    "systemd/": ["daemon"],
    "toml++/": ["daemon"],
    "CLI/": ["daemon"],
}
SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".c"}
CODE_FOLDERS = ["ipc", "client", "kernels", "tiers", "daemon", "tests"]
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.M)
FORBIDDEN = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def sources(root):
    for folder in CODE_FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield path


def home_of(relative):
    """The longest folder of ARROWS that holds the file."""
    parts = relative.split("/")[:-1]
    for length in range(len(parts), 0, -1):
        folder = "/".join(parts[:length])
        if folder in ARROWS:
            return folder
    return None


def check_includes(root, _build):
    problems = []
    for path in sources(root):
        relative = path.relative_to(root).as_posix()
        home = home_of(relative)
        if home is None:
            problems.append(f"{relative}: no folder of the map")
            continue
        for kind, target in INCLUDE.findall(path.read_text(encoding="utf-8")):
            if kind == '"':
                own = target.startswith(home + "/") and home_of(target) == home
                if not own and not any(target.startswith(prefix) for prefix in ARROWS[home]):
                    problems.append(f"{relative}: {home} must not include {target}")
                if not (root / target).is_file():
                    problems.append(f"{relative}: {target} is not a path from the root of the tree")
            else:
                for prefix, homes in HOMES.items():
                    if target.startswith(prefix) and home != "tests" and not any(
                            home == h or home.startswith(h + "/") for h in homes):
                        problems.append(f"{relative}: <{target}> belongs to {', '.join(homes)}")
    return problems


def check_tests_built(root, build):
    compiled = {pathlib.Path(entry["file"]).resolve()
                for entry in json.loads((build / "compile_commands.json").read_text())}
    problems = [f"{path.relative_to(root)}: is in no test program"
                for path in sorted((root / "tests").rglob("*_test.cc")) if path.resolve() not in compiled]
    cuda = (build / "skvd.cuda.txt").is_file()
    if not cuda:  # without nvcc these have nothing to link against
        problems = [p for p in problems if "/cuda_" not in p]
    for path in sorted((root / "tests").rglob("*_test.py")):
        lists = path.parent / "CMakeLists.txt"
        if not lists.is_file():
            lists = path.parent.parent / "CMakeLists.txt"
        # By its file name, or by its name without _test.py.
        name = path.name.removesuffix("_test.py")
        if not re.search(rf"\b{re.escape(name)}(_test(\.py)?)?\b", lists.read_text()):
            problems.append(f"{path.relative_to(root)}: is in no CMakeLists.txt")
    listed = (root / "tests" / "CMakeLists.txt").read_text()
    for path in sorted((root / "tests").glob("*/CMakeLists.txt")):
        if not re.search(rf"\b{re.escape(path.parent.name)}\b", listed):
            problems.append(f"{path.relative_to(root)}: tests/CMakeLists.txt does not add this folder")
    return problems


def check_words(root, _build):
    problems = []
    for path in sources(root):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if FORBIDDEN.search(line):
                problems.append(f"{path.relative_to(root)}:{number}: an unfinished mark: {line.strip()}")
    return problems


SHOWN = re.compile(r"<!-- snippet: (\S+) (\S+) -->\n```\w*\n(.*?)```", re.S)


def marked_lines(text, name):
    """The lines between [snippet:name] and [/snippet:name], without common indentation."""
    inside = re.search(rf"\[snippet:{re.escape(name)}\][^\n]*\n(.*?)[^\n]*\[/snippet:{re.escape(name)}\]", text, re.S)
    return textwrap.dedent(inside.group(1)) if inside else None


def check_snippets(root, _build):
    problems = []
    documents = [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted(root.glob("*/README.md"))]
    for document in documents:
        for source, name, shown in SHOWN.findall(document.read_text(encoding="utf-8")):
            path = root / source
            actual = marked_lines(path.read_text(encoding="utf-8"), name) if path.is_file() else None
            if actual is None:
                problems.append(f"{document.relative_to(root)}: {source} has no snippet {name}")
            elif actual.strip() != shown.strip():
                problems.append(f"{document.relative_to(root)}: snippet {name} differs from {source}")
    return problems


CHECKS = {"includes": check_includes, "tests_built": check_tests_built, "words": check_words,
          "snippets": check_snippets}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    options = parser.parse_args()
    problems = CHECKS[options.check](options.source.resolve(), options.build.resolve())
    for problem in problems:
        print(problem)
    print(f"{options.check}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
