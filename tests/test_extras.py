"""What is missing is named with the extra that brings it."""

import importlib

import pytest

from unmask.checks import needs_extra


def test_a_package_that_is_not_installed_is_named_with_its_extra():
    words = r"reading it needs the extra train \(no_such_package is missing\): pip install 'unmask\[train\]'"
    with pytest.raises(ImportError, match=words), needs_extra("train", "reading it"):
        importlib.import_module("no_such_package")


def test_a_module_of_this_package_that_is_not_there_is_no_missing_extra():
    words = r"No module named 'unmask\.no_such_module'"
    with pytest.raises(ModuleNotFoundError, match=words), needs_extra("train", "reading it"):
        importlib.import_module("unmask.no_such_module")
