"""Control flow of a group of lanes: block after block, the lowest first where lanes are at different places."""

from __future__ import annotations

import numpy as np

from tests.ptx.blocks import Block
from tests.ptx.group import ENDED, RUNS, WAITS, WAITS_FOR_WARP, Fault, Group, Row


def run(group: Group) -> None:
    """Until no lane can go on: all wait at a barrier or have ended."""
    if not group.uniform and (group.status == RUNS).all() and (group.pcs == group.pcs[0]).all():
        group.uniform, group.pc = True, int(group.pcs[0])
    while _run_together(group) if group.uniform else _run_lowest(group):
        group.machine.tick()


def _run_together(group: Group) -> bool:
    """Runs the block that all lanes are at; whether any can go on."""
    machine = group.machine
    block = machine.translated.blocks[group.pc]
    machine.record.warps[block.number] += group.n // 32
    machine.translated.function(block.number, False)(group, None)
    following = block.number + 1
    if block.ending == "fall":
        group.pc = following
    elif block.ending == "jump":
        group.pc = block.target
    elif block.ending == "barrier" and group.n == machine.lanes:
        machine.pcs[:] = following
        machine.status[:] = WAITS
        machine.release()
        group.pc = following
    elif block.ending == "branch":
        taken = _condition(group, block)
        count = np.count_nonzero(taken)
        if count in (0, group.n):
            group.pc = block.target if count else following
        else:
            group.uniform = False
            group.status[:] = RUNS
            group.pcs[:] = np.where(taken, block.target, following)
    else:
        group.uniform = False
        group.status[:] = RUNS
        _leave(group, block, group.ones)
    return True


def _run_lowest(group: Group) -> bool:
    """Runs the lowest block that a lane is at; whether there was one."""
    ready = group.status == RUNS
    if not ready.any():
        return False
    machine = group.machine
    number = int(group.pcs[ready].min())
    block = machine.translated.blocks[number]
    mask: Row = ready & (group.pcs == number)
    if block.together:
        here = ((group.status == RUNS) | (group.status == WAITS_FOR_WARP)) & (group.pcs == number)
        complete = (here | (group.status == ENDED)).reshape(-1, 32).all(1).repeat(32)
        group.status[here & ~complete] = WAITS_FOR_WARP
        mask = here & complete
        group.status[mask] = RUNS
        if not mask.any():
            return True
    if mask.all():
        group.uniform, group.pc = True, number
        return True
    warps = mask.reshape(-1, 32)
    machine.record.warps[number] += int(warps.any(1).sum())
    machine.record.partial += int((warps.any(1) & ~warps.all(1)).sum())
    machine.translated.function(number, True)(group, mask)
    _leave(group, block, mask)
    return True


def _leave(group: Group, block: Block, mask: Row) -> None:
    """Where the lanes of the mask go from a block."""
    following = block.number + 1
    if block.ending == "trap":
        raise Fault("trap")
    if block.ending in ("branch", "conditional exit"):
        taken = _condition(group, block) & mask
        group.pcs[mask] = following
        if block.ending == "branch":
            group.pcs[taken] = block.target
        else:
            group.status[taken] = ENDED
        return
    group.pcs[mask] = block.target if block.ending == "jump" else following
    if block.ending in ("barrier", "exit"):
        group.status[mask] = WAITS if block.ending == "barrier" else ENDED


def _condition(group: Group, block: Block) -> Row:
    taken: Row = group.p[group.machine.translated.rows[block.predicate][1]] != block.negated
    return taken
