#!/usr/bin/env python3
"""The checker finds what it is for: each wrong tree below must be reported, the right one not."""

import json
import pathlib
import tempfile
import unittest

import check_tree


class CheckTree(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.root = pathlib.Path(holder.name)
        self.write("ipc/types/ids.h", "#pragma once\n")
        self.write("tiers/store.h", '#include "ipc/types/ids.h"\n')

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def test_a_tree_that_follows_the_arrows_passes(self):
        self.assertEqual(check_tree.check_includes(self.root, None), [])

    def test_an_arrow_against_the_map_is_found(self):
        self.write("daemon/loop.h", "#pragma once\n")
        self.write("tiers/bad.cc", '#include "daemon/loop.h"\n')
        self.assertEqual(len(check_tree.check_includes(self.root, None)), 1)

    def test_a_system_library_outside_its_home_is_found(self):
        self.write("tiers/bad.cc", "#include <uv.h>\n")
        self.assertEqual(len(check_tree.check_includes(self.root, None)), 1)

    def test_a_path_that_is_not_from_the_root_is_found(self):
        self.write("tiers/bad.cc", '#include "tiers/missing.h"\n')
        self.assertEqual(len(check_tree.check_includes(self.root, None)), 1)

    def test_a_test_file_in_no_program_is_found(self):
        self.write("tests/tiers/store_test.cc", "\n")
        self.write("tests/CMakeLists.txt", "foreach(folder tiers)\n")
        self.write("build/compile_commands.json", json.dumps([]))
        self.assertEqual(len(check_tree.check_tests_built(self.root, self.root / "build")), 1)
        self.write("build/compile_commands.json",
                   json.dumps([{"file": str(self.root / "tests/tiers/store_test.cc")}]))
        self.assertEqual(check_tree.check_tests_built(self.root, self.root / "build"), [])

    def test_a_python_test_or_a_folder_that_nothing_adds_is_found(self):
        self.write("build/compile_commands.json", json.dumps([]))
        self.write("tests/CMakeLists.txt", "foreach(folder hf)\n")
        self.write("tests/hf/CMakeLists.txt", "skv_hf_test(engine TIMEOUT 1)\n")
        self.write("tests/hf/engine_test.py", "\n")
        self.assertEqual(check_tree.check_tests_built(self.root, self.root / "build"), [])
        self.write("tests/hf/other_test.py", "\n")
        self.assertEqual(len(check_tree.check_tests_built(self.root, self.root / "build")), 1)
        self.write("tests/lost/CMakeLists.txt", "\n")
        self.assertEqual(len(check_tree.check_tests_built(self.root, self.root / "build")), 2)

    def test_a_snippet_that_differs_is_found(self):
        self.write("docs/a.md", "\n")
        self.write("tests/x.cc", "  // [snippet:open]\n  open();\n  // [/snippet:open]\n")
        self.write("README.md", "<!-- snippet: tests/x.cc open -->\n```cpp\nopen();\n```\n")
        self.assertEqual(check_tree.check_snippets(self.root, None), [])
        self.write("README.md", "<!-- snippet: tests/x.cc open -->\n```cpp\nclose();\n```\n")
        self.assertEqual(len(check_tree.check_snippets(self.root, None)), 1)
        self.write("README.md", "<!-- snippet: tests/x.cc gone -->\n```cpp\nopen();\n```\n")
        self.assertEqual(len(check_tree.check_snippets(self.root, None)), 1)

    def test_an_unfinished_mark_is_found(self):
        self.write("tiers/bad.cc", "// TO" + "DO later\n")
        self.assertEqual(len(check_tree.check_words(self.root, None)), 1)


if __name__ == "__main__":
    unittest.main()
