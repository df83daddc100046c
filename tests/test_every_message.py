"""Every message of the program is one that a test asserts, word by word.

A message is what the program raises, or adds to the faults of a study. A test asserts it if an assertion leads to a
line with its whole text: the text is in the assertion, in a `match=`, or in something that the assertion names.
"""

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import diffmem

TESTS = Path(__file__).parent
PACKAGE = Path(diffmem.__file__).parent
ANY = "\N{HORIZONTAL ELLIPSIS}"
"""What stands for a value in the text of a test."""


# --- messages of the program ---------------------------------------------------------------------------

PROGRAMMERS = ("ValueError", "RuntimeError", "StudyError")
"""Errors of a programmer's mistake; and that of a study, whose faults come one by one."""
PLACES = {"faults.add": 2, "Fault": 1, "self.fail": 0, "super().__init__": 0}
"""The argument that is the message, for calls that tell one."""

Functions = Mapping[str, ast.FunctionDef]


@cache
def texts_of_package() -> Functions:
    """Return the functions of the package that return a text, by name; none of which there are two."""
    found: dict[str, list[ast.FunctionDef]] = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for name, function in functions_of(ast.parse(path.read_text())).items():
            found[name].append(function)
    return {name: each[0] for name, each in found.items() if len(each) == 1 and is_text(each[0])}


def functions_of(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def is_text(function: ast.FunctionDef) -> bool:
    return function.returns is not None and ast.unparse(function.returns) in ("str", "str | None")


def messages(tree: ast.Module) -> set[tuple[int, str]]:
    """Return the line and the pattern of every message of a module: of errors, of faults and of refused options."""
    module = Module(tree)
    return {
        (node.lineno, pattern)
        for function in module.functions.values()
        for node in ast.walk(function)
        for expression in spoken(node)
        for pattern in module.patterns(expression, function)
    } | set(advice(module))


def spoken(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that a node tells the user."""
    if isinstance(node, ast.Raise | ast.Return):
        raised = node.exc if isinstance(node, ast.Raise) else node.value
        for error in raised.values if isinstance(raised, ast.BoolOp) else [raised]:
            if isinstance(error, ast.Call) and is_error(ast.unparse(error.func), raised=isinstance(node, ast.Raise)):
                yield from error.args
    elif isinstance(node, ast.Call) and (place := PLACES.get(ast.unparse(node.func))) is not None:
        yield from node.args[place : place + 1]


def is_error(name: str, *, raised: bool) -> bool:
    return name not in PROGRAMMERS and (raised or name.endswith("Error"))


class Module:
    """The functions and constants of a module, by name, and the texts that its expressions can be."""

    def __init__(self, tree: ast.Module) -> None:
        self.functions = functions_of(tree)
        self.within: list[str] = []  # the functions whose texts are being put together
        self.constants = {
            ast.unparse(target): node.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        }

    def patterns(self, node: ast.expr, function: ast.FunctionDef) -> list[str]:
        """Return the patterns of the texts that an expression of a function can be; `.*` for any text."""

        def inner(part: ast.expr) -> list[str]:
            return self.patterns(part, function)

        match node:
            case ast.Constant(value=str(text)):
                return [re.escape(text)]
            case ast.JoinedStr(values=parts):
                return ["".join(choice) for choice in itertools.product(*map(inner, parts))]
            case ast.FormattedValue(value=ast.Call(func=ast.Name())):
                return [".*"]  # a value that is shown
            case ast.FormattedValue(value=value):
                return inner(value)
            case ast.BinOp(left=left, right=right):
                return ["".join(choice) for choice in itertools.product(inner(left), inner(right))]
            case ast.IfExp(body=body, orelse=other):
                return inner(body) + inner(other)
            case ast.Name():
                return self._named(node, function)
            case ast.Call(func=called) if known := self._function(ast.unparse(called).removeprefix("self.")):
                return self._returned(known)
            case ast.Attribute(attr=name) if known := self.functions.get(name):
                return self._returned(known)
        return [".*"]

    def _function(self, name: str) -> ast.FunctionDef | None:
        own = self.functions.get(name)
        return own if own and is_text(own) else texts_of_package().get(name)

    def _named(self, node: ast.Name, function: ast.FunctionDef) -> list[str]:
        values: list[ast.expr] = []
        for each in sorted(ast.walk(function), key=lambda each: getattr(each, "lineno", 0)):
            if isinstance(each, ast.NamedExpr) and each.target.id == node.id and each.lineno <= node.lineno:
                values = [each.value]  # the last one before the use
            elif isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == node.id:
                values.append(each.value)
        constant = self.constants.get(node.id)
        if not values and isinstance(constant, ast.Constant | ast.JoinedStr):
            values = [constant]
        return [pattern for value in values for pattern in self.patterns(value, function)] or [".*"]

    def _returned(self, function: ast.FunctionDef) -> list[str]:
        if function.name in self.within:  # one that calls itself, for any text
            return [".*"]
        self.within.append(function.name)
        returned = [each.value for each in ast.walk(function) if isinstance(each, ast.Return) and each.value]
        found = [pattern for each in returned for pattern in self.patterns(each, function) if pattern]
        self.within.pop()
        return found or [".*"]


def advice(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the pattern of what the table REFUSALS says of a store."""
    table = module.constants.get("REFUSALS")
    for row in table.elts if isinstance(table, ast.List) else []:
        text = row.elts[2]
        text = module.constants[text.id] if isinstance(text, ast.Name) else text
        yield row.lineno, ".*: " + ".*".join(map(re.escape, re.split(r"\{\w+\}", text.value)))


# --- texts that tests assert ---------------------------------------------------------------------------


def asserted(tree: ast.Module) -> set[str]:
    """Return the lines of texts that the assertions of a module lead to; `ANY` for a value in them."""
    named = meanings(tree)
    waiting: list[ast.AST] = list(assertions(tree))
    seen: set[str] = set()
    lines: set[str] = set()
    while waiting:
        for node in ast.walk(waiting.pop()):
            lines.update(line for text in said(node) for line in text.splitlines())
            if isinstance(node, ast.Name) and node.id not in seen:
                seen.add(node.id)
                waiting += named[node.id]
    return lines


def assertions(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what a module asserts, but not what it asserts to be absent."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and not (
            isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.NotIn | ast.NotEq)
        ):
            yield node.test
        elif isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "match")


def meanings(tree: ast.Module) -> dict[str, list[ast.AST]]:
    """Return what each name of a module can be: by an assignment, a loop, a parameter or as what a function returns."""
    found: dict[str, list[ast.AST]] = defaultdict(list)
    functions = functions_of(tree)
    for name, function in functions.items():
        yields = [each.value for each in ast.walk(function) if isinstance(each, ast.Return | ast.Yield)]
        found[name] += [value for value in yields if value]
    for node in ast.walk(tree):
        for name, value in named_by(node, functions):
            found[name].append(value)
    return found


def named_by(node: ast.AST, functions: Functions) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that a node gives a value, each with the value."""
    match node:
        case ast.Call(func=ast.Attribute(attr="parametrize"), args=[names, values, *_]):
            yield from ((name, values) for name in re.findall(r"\w+", ast.unparse(names)))
        case ast.Call(func=ast.Name(id=name), args=values) if name in functions:
            parameters = functions[name].args.args
            yield from ((each.arg, value) for each, value in zip(parameters, values, strict=False))
        case ast.Assign(targets=[target, *_], value=value) | ast.NamedExpr(target=target, value=value):
            yield from ((name, value) for name in names_in(target))
        case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
            yield from ((name, value) for name in names_in(target))
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            yield from ((name, value) for name in names_in(target))


def names_in(target: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


def said(node: ast.AST) -> list[str]:
    """Return the text of a node, as it is and as what it matches if it is a pattern."""
    match node:
        case ast.Constant(value=str(text)):
            pass
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in parts)
        case _:
            return []
    return [text, re.sub(r"\\(.)", r"\1", text)]


def asserted_by(trees: Iterable[ast.Module]) -> str:
    return "\n".join(line for tree in trees for line in sorted(asserted(tree)))


def is_asserted(pattern: str, known: str) -> bool:
    """Return whether a message is a whole line of some texts; what comes first may be added to it, or be its place."""
    sentence = re.sub(r"^\.\*:\\? ", "", pattern)
    return re.search(rf"(^|: ){sentence}$", known, re.MULTILINE) is not None


# --- the two together ----------------------------------------------------------------------------------


def unasserted(source: str, known: str) -> list[str]:
    return [pattern for _, pattern in sorted(messages(ast.parse(source))) if not is_asserted(pattern, known)]


@pytest.fixture(scope="module")
def known() -> str:
    others = [path for path in sorted(TESTS.rglob("test_*.py")) if path != Path(__file__)]
    return asserted_by(ast.parse(path.read_text()) for path in others)


def test_every_message_is_asserted_by_a_test(known):
    missing = {path: unasserted(path.read_text(), known) for path in sorted(PACKAGE.rglob("*.py"))}
    assert not any(missing.values()), "\n".join(
        f"{path.relative_to(PACKAGE.parent)}: {pattern}" for path, patterns in missing.items() for pattern in patterns
    )


def test_a_changed_word_of_a_message_is_noticed(known):
    """Of each long message of two modules, one word at a time."""
    for name in ("runs/cell_run.py", "store/refusals.py", "store/waiting.py"):
        found = {pattern for _, pattern in messages(ast.parse((PACKAGE / name).read_text()))}
        for pattern in found:
            for word in re.findall(r"(?<=\\ )[a-z]{4,}(?=\\ )", pattern):
                assert not is_asserted(pattern.replace(word, "changed", 1), known), (pattern, word)


MESSAGE = "a.duckdb: words that no test has"


@pytest.mark.parametrize(
    "statement",
    [
        'raise RunError(f"{path}: words that no test has")',
        'raise failed or MachineError(f"{path}: words that no test has")',
        'return DiffmemError(f"{path}: words that no test has")',
        'words = "words that no test has" if path else "no such file or folder"; raise kind(f"{path}: {words}")',
        'if advice := wordless(path): raise kind(f"{path}: {advice}") from error',
        'faults.add(place, key, f"{path}: words that no test has")',
        'faults.append(Fault(("P.size",), f"{path}: " + HAS))',
        'self.fail(f"{path}: words that no test has", param, ctx)',
    ],
)
def test_words_that_no_test_asserts_are_found(statement, known):
    source = f"""
HAS = "words that no test has"
def wordless(path) -> str:
    return "words that no test has" if path else ""
def work(path):
    {statement}
"""
    assert r".*:\ words\ that\ no\ test\ has" in unasserted(source, known)
    assert unasserted(source, f"{known}\n{MESSAGE}") == []


def test_what_a_table_advises_of_a_store_is_found(known):
    source = 'REFUSALS = [(("file too large",), StoreError, "words {path} that no test has")]'
    assert unasserted(source, known) == [r".*: words\ .*\ that\ no\ test\ has"]


@pytest.mark.parametrize(
    ("test", "is_known"),
    [
        ('"""a.duckdb: words that no test has"""', False),
        ('ELSEWHERE = ["a.duckdb: words that no test has"]', False),
        ('print("a.duckdb: words that no test has")', False),
        ('assert "a.duckdb: words that no test has" not in told', False),
        ('assert told == "a.duckdb: words that no test"', False),
        ('assert told == "a.duckdb: words that no test has and more"', False),
        ('assert told == "a.duckdb: words that no test has\\n"', True),
        ('assert told == f"{path}: words that no test has"', True),
        ('with pytest.raises(StoreError, match=r"a\\.duckdb: words that no test has"): ...', True),
        ('words = "words that no test has"; assert told == f"{path}: {words}"', True),
        ('words = "a.duckdb: words that no test has"; assert told == words', True),
        ('for sentence in ["a.duckdb: words that no test has"]: assert told == sentence', True),
        ('def check(words): assert told == words\ncheck("a.duckdb: words that no test has")', True),
        ('@mark.parametrize("w", {"a.duckdb: words that no test has": 7})\ndef test(w): assert told == w', True),
    ],
)
def test_a_text_counts_if_an_assertion_leads_to_it(test, is_known):
    assert is_asserted(r".*:\ words\ that\ no\ test\ has", asserted_by([ast.parse(test)])) == is_known
