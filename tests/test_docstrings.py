"""Docstrings: public modules, classes and functions have one, and it begins with its subject or verb."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for room in ("bench", "models") for path in (ROOT / room).rglob("*.py"))
HOOK = "pytest_"  # pytest documents its hooks
INVERTED = {
    *("Of", "That", "What", "Whatever", "Which", "Who", "Whoever", "How", "Why", "When", "Where", "Whether"),
    *("In", "To", "By", "From", "With", "There", "So", "Also"),
}


def documented(tree):
    """Yields (name, node, public) of a module and of its classes and functions, methods included.

    A method is not public here: one that overrides another has the docstring of that one.
    """
    yield "", tree, True
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, node, node in tree.body and not node.name.startswith(("_", HOOK))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_are_there_and_begin_with_subject_or_verb(path):
    for name, node, public in documented(ast.parse(path.read_text())):
        text = ast.get_docstring(node)
        assert text or not public, f"{path}: {name or 'the module'} has no docstring"
        assert not text or text.split()[0].rstrip(",:") not in INVERTED, f"{path}: {name}: {text[:60]}"
