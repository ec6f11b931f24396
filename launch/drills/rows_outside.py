"""What comes from outside, and everything at once: D35 to D40."""

from __future__ import annotations

from launch.drills import outside, sentinels, soak, stored, suites, writers
from launch.drills.bench import Drill

ROWS: tuple[Drill, ...] = (
    Drill(
        number=35,
        name="malicious checkpoint",
        fault="pickles, bombs of brackets, zeros and digits, paths, links, pipes, sealed lies",
        promise="no code, no hang, no memory; refused in a sentence or stepped back from",
        bound="canary absent in all",
        tier="U",
        run=stored.malicious,
        pace="aside",
    ),
    Drill(
        number=36,
        name="malicious settings",
        fault="targets, partials, resolvers, Hydra's own keys, a stored plan",
        promise="data, never code",
        bound="canary absent in all",
        tier="U",
        run=outside.malicious_settings,
        pace="aside",
    ),
    Drill(
        number=37,
        name="secrets and shells",
        fault="keys in environment, .netrc, proxy; names with shell characters, paths, NUL",
        promise="no key in any file, output or command line; no such name is accepted",
        bound="0 bytes, all names refused",
        tier="G",
        run=sentinels.secrets_and_shells,
    ),
    Drill(
        number=38,
        name="exposure and modes",
        fault="looked at from outside while it trains; a link planted in the runs' folder",
        promise="files of the owner alone, ports on loopback alone",
        bound="0 and 0",
        tier="G",
        run=outside.modes_and_ports,
    ),
    Drill(
        number=39,
        name="background saves",
        fault="weights change right after the copy; writers killed in each phase",
        promise="the bytes of the boundary; a dead writer is a failed save",
        bound="50 of 50 equal, 0 silent losses",
        tier="G",
        run=writers.background_saves,
        shortens=True,
    ),
    Drill(
        number=39,
        part="b",
        name="states in memory",
        fault="killed, full, out of reach, damaged, another run's, withdrawn, knocked at",
        promise="dropped and counted, the one before stands; a bad one never beats the disk",
        bound="every case, training waits for none",
        tier="P",
        run=suites.suite(
            "tests/distributed/test_peer_faults.py",
            "tests/distributed/test_peer_ranks.py",
            what="cases of states in memory, every value compared",
        ),
        pace="aside",
    ),
    Drill(
        number=40,
        part="a",
        name="soak",
        fault="30 random faults, exponential in useful steps, seeded",
        promise="the run ends with the reference's bits; its goodput is foretold",
        bound="30 of 30, within 3 points",
        tier="G",
        run=soak.soak,
        shortens=True,
    ),
    Drill(
        number=40,
        part="b",
        name="crash loop",
        fault="every start dies at the same step",
        promise="one checkpoint back, then stop with 79",
        bound="at most 6 attempts",
        tier="G",
        run=soak.crash_loop,
    ),
)
