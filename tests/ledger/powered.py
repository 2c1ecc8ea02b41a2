"""Writers whose power is cut: to be started with the library of cut.c loaded before all others.

LD_PRELOAD=cut.so python powered.py FOLDER COUNT SEED     one writer in each of COUNT folders; says ``NUMBER ID``
"""

import ctypes
import os
import sys
from pathlib import Path
from random import Random


def cut(folder, number, seed):
    """Write in a process of its own, until its power is cut; return how many writes to the disk that took."""
    from writer import write  # beside this file, on the path of a script alone

    power, random = ctypes.CDLL(None), Random(seed)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(into, 1)
        power.cut_after(random.randrange(1, 400), seed)
        write(folder, f"p{number}", 10**6, steps=number % 2 == 1)
        os._exit(1)
    os.close(into)
    with os.fdopen(out) as said:
        for line in said:
            os.write(2, f"{number} {line}".encode())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9, "the power was not cut"


if __name__ == "__main__":
    place, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for number in range(count):
        cut(place / str(number), number, seed + number)
