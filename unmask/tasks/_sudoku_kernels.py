"""Compiled kernels of `sudoku_puzzles`: constraint propagation, search, removal of clues, training states.

This module imports numba, so it is imported only inside functions. Cells are numbered 0..80, row by row. A set of
digits is a bit mask: bit `d` stands for token `d + 1`. Every random choice comes from a SplitMix64 stream that is
seeded per puzzle or per sequence, so results depend neither on numba's generator nor on the order of calls.
"""

import numpy as np
from numba import njit

ALL = 511


def _tables() -> tuple[np.ndarray, np.ndarray]:
    units = np.empty((27, 9), np.int64)
    for u in range(9):
        for k in range(9):
            units[u, k] = 9 * u + k
            units[9 + u, k] = 9 * k + u
            units[18 + u, k] = 9 * (u // 3 * 3 + k // 3) + u % 3 * 3 + k % 3
    peers = np.empty((81, 20), np.int64)
    for i in range(81):
        peers[i] = sorted({int(j) for unit in units if i in unit for j in unit} - {i})
    return units, peers


UNITS, PEERS = _tables()


@njit(cache=True)
def _mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def stream(seed, a, b):
    """Returns the state of the random stream `(a, b)` of `seed`: an array of one unsigned 64-bit integer."""
    s = np.empty(1, np.uint64)
    z = _mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15))
    z = _mix(z ^ (np.uint64(a) + np.uint64(0xD1B54A32D192ED03)))
    s[0] = _mix(z ^ (np.uint64(b) + np.uint64(0x8CB92BA72F3D8DD7)))
    return s


@njit(cache=True)
def below(s, n):
    """Returns a uniform integer in `0 .. n - 1`, up to a bias of about n * 2^-32."""
    s[0] += np.uint64(0x9E3779B97F4A7C15)
    return np.int64(((_mix(s[0]) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(cache=True)
def shuffled(s, n):
    """Returns a uniformly random permutation of `0 .. n - 1`."""
    p = np.arange(n)
    for i in range(n - 1, 0, -1):
        j = below(s, i + 1)
        p[i], p[j] = p[j], p[i]
    return p


@njit(cache=True)
def propagate(cand, done):
    """Applies naked and hidden singles to the digit sets `cand`, in place, as long as they change something.

    `done` marks the cells whose digit has already been removed from the sets of their peers. Returns False at a
    contradiction.
    """
    while True:
        changed = True
        while changed:
            changed = False
            for i in range(81):
                if done[i]:
                    continue
                m = cand[i]
                if m == 0:
                    return False
                if m & (m - 1) == 0:
                    done[i] = 1
                    for k in range(20):
                        j = PEERS[i, k]
                        if cand[j] & m:
                            cand[j] &= ~m
                            if cand[j] == 0:
                                return False
                            changed = True
        for u in range(27):
            once = 0
            twice = 0
            for k in range(9):
                m = cand[UNITS[u, k]]
                twice |= once & m
                once |= m
            if once != ALL:
                return False
            hidden = once & ~twice
            if hidden:
                for k in range(9):
                    i = UNITS[u, k]
                    m = cand[i] & hidden
                    if m and cand[i] != m:
                        if m & (m - 1):
                            return False
                        cand[i] = m
                        changed = True
        if not changed:
            return True


@njit(cache=True)
def _branch_cell(cand):
    best = -1
    fewest = 10
    for i in range(81):
        m = cand[i]
        if m & (m - 1):
            count = 0
            while m:
                m &= m - 1
                count += 1
            if count < fewest:
                fewest = count
                best = i
    return best


@njit(cache=True)
def count_solutions(cand, limit, cands, dones, first):
    """Counts the completions of the digit sets `cand` up to `limit`; the first one found is written to `first`.

    `cands` and `dones` are scratch space of shape (82, 81).
    """
    found = 0
    cands[0, :] = cand
    dones[0, :] = 0
    if not propagate(cands[0], dones[0]):
        return 0
    cells = np.empty(82, np.int64)
    depth = 0
    cells[0] = _branch_cell(cands[0])
    while depth >= 0:
        i = cells[depth]
        if i < 0:
            if found == 0:
                first[:] = cands[depth]
            found += 1
            if found >= limit:
                return found
            depth -= 1
            continue
        m = cands[depth, i]
        if m == 0:
            depth -= 1
            continue
        bit = m & -m
        cands[depth, i] = m & ~bit
        cands[depth + 1, :] = cands[depth]
        dones[depth + 1, :] = dones[depth]
        cands[depth + 1, i] = bit
        if propagate(cands[depth + 1], dones[depth + 1]):
            depth += 1
            cells[depth] = _branch_cell(cands[depth])
    return found


@njit(cache=True)
def candidates(puzzle):
    """Returns the digit sets of the cells of a puzzle before any propagation."""
    cand = np.empty(81, np.int64)
    for i in range(81):
        cand[i] = ALL if puzzle[i] == 0 else 1 << (puzzle[i] - 1)
    return cand


@njit(cache=True)
def digit(mask):
    """Returns the token of a set of one digit."""
    d = 0
    while mask:
        mask >>= 1
        d += 1
    return d


@njit(cache=True)
def random_grid(s, out):
    """Writes a random complete grid to `out`: cells in random order get random digits, with backtracking.

    Every grid can occur. The distribution is invariant under the symmetries of Sudoku, but not exactly uniform.
    """
    cand = np.full(81, ALL, np.int64)
    done = np.zeros(81, np.int64)
    saved = np.empty(81, np.int64)
    saved_done = np.empty(81, np.int64)
    while True:
        cand[:] = ALL
        done[:] = 0
        failures = 0
        order = shuffled(s, 81)
        k = 0
        while k < 81 and failures < 40:
            i = order[k]
            m = cand[i]
            if m & (m - 1) == 0:
                k += 1
                continue
            count = 0
            rest = m
            while rest:
                rest &= rest - 1
                count += 1
            skip = below(s, count)
            bit = m & -m
            for _ in range(skip):
                m &= m - 1
                bit = m & -m
            saved[:] = cand
            saved_done[:] = done
            cand[i] = bit
            if not propagate(cand, done):
                cand[:] = saved
                done[:] = saved_done
                cand[i] &= ~bit
                failures += 1
                if not propagate(cand, done):
                    failures = 1000
        if k == 81:
            for i in range(81):
                out[i] = digit(cand[i])
            return


@njit(cache=True)
def dig(s, solution, keep, cands, dones):
    """Removes clues in random order, each unless the solution would no longer be unique; `keep` is 1 for those left."""
    keep[:] = 1
    cand = np.empty(81, np.int64)
    first = np.empty(81, np.int64)
    for i in shuffled(s, 81):
        for j in range(81):
            cand[j] = 1 << (solution[j] - 1) if keep[j] else ALL
        cand[i] = ALL & ~(1 << (solution[i] - 1))
        if count_solutions(cand, 1, cands, dones, first) == 0:
            keep[i] = 0


@njit(cache=True)
def closure(puzzle, out):
    """Writes a puzzle to `out` with the cells filled in that naked and hidden singles determine, and 0 for the others.

    Returns False if the puzzle is contradictory; `out` is then the puzzle itself.
    """
    cand = candidates(puzzle)
    done = np.zeros(81, np.int64)
    ok = propagate(cand, done)
    for i in range(81):
        m = cand[i]
        out[i] = digit(m) if ok and m & (m - 1) == 0 else puzzle[i]
    return ok


@njit(cache=True)
def make_pool(seed, start, solutions, kinds):
    """Fills `solutions` with random grids, and `kinds` as in `sudoku_puzzles.PuzzlePool`.

    Puzzle number `start + i` of `seed` is in row `i`.
    """
    cands = np.empty((82, 81), np.int64)
    dones = np.empty((82, 81), np.int64)
    keep = np.empty(81, np.int64)
    grid = np.empty(81, np.int64)
    puzzle = np.empty(81, np.int64)
    closed = np.empty(81, np.int64)
    for n in range(solutions.shape[0]):
        s = stream(seed, start + n, 0)
        random_grid(s, grid)
        dig(s, grid, keep, cands, dones)
        for i in range(81):
            puzzle[i] = grid[i] if keep[i] else 0
        closure(puzzle, closed)
        for i in range(81):
            solutions[n, i] = grid[i]
            kinds[n, i] = 2 if keep[i] else (1 if closed[i] else 0)


@njit(cache=True)
def count_many(puzzles, limit, counts, solutions):
    """Counts the solutions of each puzzle up to `limit`; the first one found is written to `solutions`."""
    cands = np.empty((82, 81), np.int64)
    dones = np.empty((82, 81), np.int64)
    first = np.empty(81, np.int64)
    for n in range(puzzles.shape[0]):
        first[:] = 0
        counts[n] = count_solutions(candidates(puzzles[n]), limit, cands, dones, first)
        for i in range(81):
            solutions[n, i] = digit(first[i]) if counts[n] else 0


@njit(cache=True)
def training_states(seed, step, solutions, kinds, hard, few, weights, x, target):
    """Fills the batch of a step: row `i` depends only on `(seed, step, i)` and the pool.

    `weights` are the cumulative percentages of the kinds of states, see `sudoku_puzzles.StateMix`.
    """
    for n in range(x.shape[0]):
        s = stream(seed, step, n + 1)
        draw = below(s, 100)
        if draw < weights[0]:  # uniformly random masks, on any grid
            g = below(s, solutions.shape[0])
            order = shuffled(s, 81)
            hidden = 1 + below(s, 81)
            for k in range(81):
                i = order[k]
                target[n, i] = solutions[g, i]
                x[n, i] = 0 if k < hidden else solutions[g, i]
            continue
        # A state of a puzzle with one solution: its clues and a random part of the other cells, easy ones first.
        if draw < weights[1]:
            g = below(s, solutions.shape[0])
        elif draw < weights[2]:
            g = few[below(s, few.shape[0])]
        else:
            g = hard[below(s, hard.shape[0])]
        for i in range(81):
            target[n, i] = solutions[g, i]
            x[n, i] = solutions[g, i] if kinds[g, i] == 2 else 0
        style = below(s, 4)
        order = shuffled(s, 81)
        if style == 1:  # some of the cells that singles determine
            reached = 0
            for i in range(81):
                reached += kinds[g, i] == 1
            quota = below(s, reached + 1)
            for k in range(81):
                i = order[k]
                if quota > 0 and kinds[g, i] == 1:
                    x[n, i] = solutions[g, i]
                    quota -= 1
        elif style >= 2:  # all cells that singles determine, and in half of these states a few more
            for i in range(81):
                if kinds[g, i] == 1:
                    x[n, i] = solutions[g, i]
            rest = 0
            for i in range(81):
                rest += x[n, i] == 0
            if rest == 0:  # singles solve the whole puzzle: mask a random part of their cells again
                for i in range(81):
                    if kinds[g, i] == 1 and below(s, 2):
                        x[n, i] = 0
                        rest += 1
            elif style == 3:
                quota = below(s, (rest + 1) // 2)
                for k in range(81):
                    i = order[k]
                    if quota > 0 and x[n, i] == 0:
                        x[n, i] = solutions[g, i]
                        quota -= 1
        masked = 0
        for i in range(81):
            masked += x[n, i] == 0
        if masked == 0:
            x[n, order[0]] = 0
