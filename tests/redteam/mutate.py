"""Takes one check out of the code at a time and looks whether a test notices.

    make mutants                                  # every file of TARGETS; hours
    .venv/bin/python tests/redteam/mutate.py monitor/authorize.py [--list] [--only 3,17]

Each mutant is one edit of one file, in a copy of the checkout with a virtual environment of its own, so that children
that are started with `python -I` run it too. Stages of tests run from the fast to the real ones until one fails. What
no stage notices is printed at the end: each survivor is a check that could be removed unseen.
"""

import argparse
import ast
import copy
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
STAGE_SECONDS = 600
PACKAGES = ("privsep", "monitor", "worker", "keyd")
ADMIT = 0x7FFF0000
"""SECCOMP_RET_ALLOW."""
KEYD = (
    "tests/keyd/test_states.py tests/keyd/test_phase1.py tests/keyd/test_phase2.py",
    "tests/keyd/test_handle_machine.py",
    "tests/redteam/test_fuzz.py",
    "tests/redteam/test_forge.py tests/redteam/test_exhaust.py",
)
AUTHORIZE = (
    "tests/monitor/test_authorize.py",
    "tests/monitor/test_inheritance.py tests/monitor/test_service.py tests/redteam/test_fuzz.py",
    "tests/redteam/test_install.py tests/redteam/test_captured_keyd.py",
)
MONITOR = (
    "tests/monitor/test_installer.py tests/monitor/test_service.py tests/monitor/test_inheritance.py "
    "tests/monitor/test_numbers.py tests/monitor/test_sadb.py tests/monitor/test_status.py "
    "tests/monitor/test_commands.py",
    "tests/redteam/test_fuzz.py",
    "tests/redteam/test_install.py tests/redteam/test_captured_keyd.py tests/redteam/test_exhaust.py",
)
XFRM = (
    "tests/monitor/xfrm/test_policy.py tests/monitor/xfrm/test_client.py tests/monitor/xfrm/test_migration.py",
    "tests/monitor/xfrm",
)
SANDBOX = (
    "tests/privsep/sandbox",
    "tests/privsep/test_audit.py",
    "tests/process/test_sandbox_together.py tests/process/test_audit.py",
    "tests/redteam/test_reach_out.py tests/redteam/test_steal.py tests/redteam/test_captured_esp.py",
)
WORKER = ("tests/worker", "tests/exchanges", "tests/process/test_bad_input.py")
CODEC = (
    "tests/privsep/schema tests/privsep/isakmp tests/worker/codec tests/keyd/test_phase1.py",
    "tests/redteam/test_fuzz.py",
)
TARGETS: dict[str, tuple[str, ...]] = {
    "keyd/handles.py": KEYD,
    "keyd/service.py": KEYD,
    "monitor/authorize.py": AUTHORIZE,
    **dict.fromkeys(
        (f"monitor/{name}.py" for name in ("service", "installer", "epoch", "inheritance", "numbers", "sadb")), MONITOR
    ),
    **dict.fromkeys((f"monitor/xfrm/{name}.py" for name in ("client", "migration", "policy", "spd")), XFRM),
    **{
        str(path.relative_to(CHECKOUT)): SANDBOX
        for path in sorted(CHECKOUT.glob("privsep/sandbox/*.py"))
        if path.name not in ("__init__.py", "errors.py")
    },
    "worker/sandbox.py": SANDBOX,
    "keyd/sandbox.py": SANDBOX,
    "monitor/sandbox.py": SANDBOX,
    "monitor/userspace/sandbox.py": SANDBOX,
    "monitor/sockets.py": ("tests/monitor/test_sockets.py", "tests/monitor/xfrm/test_kernel.py", "tests/process"),
    "keyd/groups/modp.py": ("tests/keyd/test_groups.py", "tests/keyd"),
    "privsep/schema/codec.py": CODEC,
    "privsep/isakmp/identification.py": CODEC,
    **dict.fromkeys(
        (f"worker/{name}.py" for name in ("demux", "exchange", "half_open", "moving", "ikev1/main_mode")), WORKER
    ),
}
"""Files whose checks count, and the tests that should notice, in stages."""


@dataclass(frozen=True)
class Mutant:
    """One edit: the node at this place of a file's syntax tree becomes something else."""

    line: int
    what: str
    tree: ast.Module


class Editor(ast.NodeTransformer):
    """Applies the edit of one number, and counts how many there are. A check can be dropped, passed or turned."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.count = 0
        self.done: tuple[int, str] | None = None

    def _takes(self, node: ast.AST, what: str) -> bool:
        """Whether this is the edit that was asked for."""
        self.count += 1
        if self.count - 1 != self.wanted:
            return False
        self.done = (node.lineno, what)
        return True

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        nothing = isinstance(node.returns, ast.Constant) and node.returns.value is None
        if nothing and self._takes(node, f"{node.name} does nothing"):
            node.body = [ast.copy_location(ast.Pass(), node)]
            return node
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """A named number that is a quarter of what it was."""
        name, value = ast.unparse(node.targets[0]), node.value
        number = isinstance(value, ast.Constant) and type(value.value) is int and value.value > 4
        if number and name.isupper() and self._takes(node, "a quarter of: " + ast.unparse(node)):
            node.value = ast.copy_location(ast.Constant(value.value // 4), value)
            return node
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if self._takes(node, "the condition never holds: " + ast.unparse(node.test)):
            return ast.copy_location(ast.If(ast.Constant(False), node.body, node.orelse), node)
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        for value, word in ((node.body, "always"), (node.orelse, "never")):
            if self._takes(node, f"the condition {word} holds: {ast.unparse(node.test)}"):
                return value
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        for index, value in enumerate(node.values):
            if self._takes(node, "a part is dropped: " + ast.unparse(value)):
                rest = node.values[:index] + node.values[index + 1 :]
                return rest[0] if len(rest) == 1 else ast.copy_location(ast.BoolOp(node.op, rest), node)
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        turned = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
        if "len(" in ast.unparse(node):
            turned |= {ast.Eq: ast.GtE, ast.NotEq: ast.Lt}
        for index, operator in enumerate(node.ops):
            if type(operator) in turned and self._takes(node, "the bound moves: " + ast.unparse(node)):
                operators = [*node.ops]
                operators[index] = turned[type(operator)]()
                return ast.copy_location(ast.Compare(node.left, operators, node.comparators), node)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Call) and self._takes(node, "the call is dropped: " + ast.unparse(node)):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if self._takes(node, "nothing is raised: " + ast.unparse(node)):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A filter's rule made laxer; `all` and `any` turned."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "allow":
            for index in range(1, len(node.args)):
                if self._takes(node, "a condition is dropped: " + ast.unparse(node)):
                    return _call("allow", node.args[:index] + node.args[index + 1 :], node)
        if name == "refuse" and self._takes(node, "what was refused is admitted: " + ast.unparse(node)):
            return _call("allow", node.args[:1], node)
        if name == "_each" and ast.unparse(node.args[0]) == "kill" and self._takes(node, "what was fatal is admitted"):
            return _call("_each", [ast.Name("allow", ast.Load()), *node.args[1:]], node)
        for index, keyword in enumerate(node.keywords):
            if (keyword.arg or "").startswith("max_") and self._takes(keyword.value, f"without {keyword.arg}"):
                node.keywords = node.keywords[:index] + node.keywords[index + 1 :]
                return node
        if name in ("all", "any") and self._takes(node, f"{name} becomes its opposite: " + ast.unparse(node)):
            return _call({"all": "any", "any": "all"}[name], node.args, node)
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg == "otherwise" and self._takes(node.value, "what no rule admits is admitted"):
            return ast.copy_location(ast.keyword(node.arg, ast.Constant(ADMIT)), node)
        return self.generic_visit(node)

    def visit_Set(self, node: ast.Set) -> ast.AST:
        for index, element in enumerate(node.elts):
            if self._takes(element, "an element is dropped: " + ast.unparse(element)):
                rest = node.elts[:index] + node.elts[index + 1 :]
                return ast.copy_location(ast.Set(rest), node) if rest else _call("set", [], node)
        return self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        for index, key in enumerate(node.keys):
            if key is not None and self._takes(node, "an entry is dropped: " + ast.unparse(key)):
                keys, values = (
                    node.keys[:index] + node.keys[index + 1 :],
                    node.values[:index] + node.values[index + 1 :],
                )
                return ast.copy_location(ast.Dict(keys, values), node)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """A table of checks without one of them."""
        if isinstance(node.target, ast.Name) and node.target.id == "CHECKS" and isinstance(node.value, ast.Tuple):
            for index, element in enumerate(node.value.elts):
                if self._takes(element, "the check is dropped: " + ast.unparse(element)):
                    rest = node.value.elts[:index] + node.value.elts[index + 1 :]
                    value = ast.copy_location(ast.Tuple(rest, ast.Load()), node.value)
                    return ast.copy_location(ast.AnnAssign(node.target, node.annotation, value, node.simple), node)
        node.value = None if node.value is None else self.visit(node.value)
        return node


def _call(name: str, arguments: list[ast.expr], place: ast.AST) -> ast.AST:
    return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), arguments, []), place)


def mutants(text: str) -> Iterator[Mutant]:
    """All of a file's."""
    source = ast.parse(text)
    number = 0
    while True:
        editor = Editor(number)
        tree = ast.fix_missing_locations(editor.visit(copy.deepcopy(source)))
        if editor.done is None:
            return
        line, what = editor.done
        yield Mutant(line, re.sub(r"\s+", " ", what), tree)
        number += 1


def workshop(parent: Path) -> Path:
    """A copy of the checkout, with an environment that finds our packages there and everybody else's where they are.

    Children are started with `python -I`, which takes no path from whoever starts it: only what belongs to the
    interpreter counts, so the copy has an interpreter of its own.
    """
    place, here = parent / "checkout", CHECKOUT / ".venv"
    shutil.copytree(CHECKOUT, place, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache"))
    (place / ".venv/bin").mkdir(parents=True)
    (place / ".venv/bin/python").symlink_to((here / "bin/python").resolve())
    shutil.copy(here / "pyvenv.cfg", place / ".venv")
    for name in ("kernel", "libreswan"):
        (place / ".venv" / name).symlink_to(here / name)
    (packages,) = here.glob("lib/python3*/site-packages")
    own = place / ".venv" / packages.relative_to(here)
    own.mkdir(parents=True)
    # lines of a .pth are directories; the finder that leads to the checkout is one in `packages`, and is not read
    (own / "workshop.pth").write_text(f"{place}\n{packages}\n")
    parent.chmod(0o755)
    for package in PACKAGES:
        words = [".venv/bin/python", "-I", "-c", f"import {package}; print({package}.__file__)"]
        found = subprocess.run(words, cwd=place, capture_output=True, text=True, check=True).stdout.strip()
        assert Path(found).is_relative_to(place), f"isolated children would run {found}"
    return place


def noticed(place: Path, stages: tuple[str, ...]) -> str | None:
    """The first test that failed, or None."""
    for stage in stages:
        files = [word for word in stage.split() if (place / word.partition("::")[0]).exists()]
        words = [".venv/bin/python", "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *files]
        try:
            done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=STAGE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"{stage} does not end"
        if done.returncode:
            found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
            return found[1] if found else f"{stage} ends with {done.returncode}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Remove one check at a time and see whether a test notices.")
    parser.add_argument("files", nargs="*", metavar="FILE", help="of the checkout (default: all targets)")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--only", metavar="N,N", help="these numbers only")
    parser.add_argument("--stages", type=int, metavar="N", help="the first, fast stages only")
    options = parser.parse_args()
    only = {int(number) for number in options.only.split(",")} if options.only else None
    survivors: list[str] = []
    ran = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as parent:
        place = CHECKOUT if options.list else workshop(Path(parent))
        for name in options.files or TARGETS:
            text = (CHECKOUT / name).read_text()
            for number, mutant in enumerate(mutants(text)):
                if only is not None and number not in only:
                    continue
                label = f"{name}:{mutant.line} #{number} {mutant.what}"[:150]
                if options.list:
                    print(label)
                    continue
                (place / name).write_text(ast.unparse(mutant.tree))
                by = noticed(place, TARGETS[name][: options.stages])
                ran += 1
                print(f"{label}\n    {by or 'SURVIVED'}", flush=True)
                survivors += [] if by else [label]
            (place / name).write_text(text)
    if ran:
        print(f"\n{ran} mutants, {ran - len(survivors)} noticed, {len(survivors)} survived", *survivors, sep="\n  ")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
