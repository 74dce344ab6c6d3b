"""The text of a compiled program: its computations, and how often each of them runs."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "s4", "u4"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
"""Bytes of an element by XLA's name of its type; sub-byte types count as one."""

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?<=[\])}] )([a-z][a-z0-9-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_STATED_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """One line of a computation: its name, what it gives (XLA's text), its opcode, the whole line."""

    name: str
    gives: str
    opcode: str
    text: str


class Program(NamedTuple):
    """A compiled program's text in parts.

    Attributes:
        computations: the instructions of each computation, by its name.
        entry: the name of the computation that the program begins with.
    """

    computations: dict[str, list[Instruction]]
    entry: str


def read(text: str) -> Program:
    """The computations of a compiled program's text. Raises ValueError where there is no entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, own = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            own = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            rest = found[2]
            code = _OPCODE.search(rest)
            if code is not None:
                own.append(Instruction(found[1], rest[: code.start()], code[1], line))
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY.")
    return Program(computations, entry)


def shapes(text: str) -> list[tuple[str, int]]:
    """(type, elements) of every array that a piece of the text names."""
    return [
        (kind, math.prod(int(n) for n in sizes.split(",") if n))
        for kind, sizes in _SHAPE.findall(text)
        if kind in BYTES
    ]


def size(text: str) -> int:
    """Bytes of all the arrays that a piece of the text names."""
    return sum(BYTES[kind] * count for kind, count in shapes(text))


def runs(program: Program) -> tuple[dict[str, int], int]:
    """(how often each computation runs, how many loops do not state how often: those count as one round).

    A loop runs as often as it states, or as its condition tells by comparing a counter from 0 with a
    constant. Every branch of a switch counts.
    """
    times: dict[str, int] = defaultdict(int)
    unknown = 0

    def visit(name: str, count: int) -> None:
        nonlocal unknown
        times[name] += count
        for one in program.computations.get(name, ()):
            if one.opcode.endswith(("-done", "-update")):
                continue  # it names what its -start has called
            rounds = 1
            if one.opcode == "while":
                rounds = _rounds(program, one)
                unknown += rounds == 0
            called = _CALLED.findall(one.text)
            for branches in _BRANCHES.findall(one.text):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for other in called:
                visit(other, count * max(1, rounds))

    visit(program.entry, 1)
    return dict(times), unknown


def _rounds(program: Program, loop: Instruction) -> int:
    """How often a loop's body runs; 0 where neither it nor its condition says so."""
    if stated := _STATED_TRIPS.search(loop.text):
        return int(stated[1])
    condition = _CONDITION.search(loop.text)
    body = program.computations.get(condition[1], []) if condition else []
    constants = {
        one.name: int(found[1])
        for one in body
        if one.opcode == "constant" and (found := re.search(r"constant\((\d+)\)", one.text))
    }
    for one in body:
        if one.opcode == "compare" and "direction=LT" in one.text:
            named = re.findall(r"%([\w.-]+)", one.text.partition("compare(")[2].partition(")")[0])
            limits = [constants[name] for name in named if name in constants]
            if len(limits) == 1:
                return limits[0]
    return 0
