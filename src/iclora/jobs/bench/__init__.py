"""Measuring this software on the machine at hand, one process a row (`iclora bench`).

    rows        what there is to measure, in its order of worth: data
    machine     the card, its driver, versions, commit
    supervise   the loop: order, time, kept rows
    processes   how a row's process is started, watched and ended
    book        what was measured, as bench.json and bench.md
    child       a row's process; telling: how it says what it measured
    measuring   seconds and peaks; weights: random ones, made on the device

    card, smoke, equality, attention, layers, encoding, starting, scripts: the rows

A row that fails, hangs, runs out of memory or is killed costs that row: the one that watches
imports no torch, touches no card, and writes what is known after each.
"""
