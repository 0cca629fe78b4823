"""What a compiled program needs: memory at its peak, operations that are launched."""

import re
from typing import Any

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional", "partition-id", "replica-id", "opt-barrier"),
}
"""Operations of a compiled program that are no launch."""


def facts(compiled: Any) -> dict[str, int]:
    """{'memory': bytes at its peak, 'launches': of one step} of a compiled program."""
    m = compiled.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return {
        "memory": held + m.temp_size_in_bytes,
        "launches": launches(compiled.as_text()),
    }


def launches(text: str) -> int:
    """Operations that one step runs, of an optimized program of one or many steps.

    Args:
      text: of the program. The step is what has the most of them: the body of the loop
        over steps, or all, if the loops in it are small ones (of random numbers).
    """
    bodies, entry = {}, ""
    for head, name, body in re.findall(
        r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.S | re.M
    ):
        bodies[name] = body
        entry = name if head else entry

    def count(name):
        found = 0
        for line in bodies[name].splitlines():
            op = re.search(r"[\]})] ([a-z][a-z\-]*)\(", line)
            if op is None:
                continue
            found += op[1] not in FREE
            called = re.search(r"to_apply=%?([\w.\-]+)", line)
            if op[1] == "call" and called:
                found += count(called[1])
        return found

    loops = re.findall(r" while\(.*?body=%?([\w.\-]+)", text)
    return max(map(count, [*loops, entry]))
