"""What a program sees of the machine it runs on: run it in a sandbox and outside.

    daytona run -- python3 examples/python/hello.py Ada
"""

import getpass
import os
import pathlib
import platform
import sys


def may(path, right):
    if not os.path.exists(path):
        return f"there is no {path}"
    return f"I may {right} {path}" if os.access(path, {"read": os.R_OK, "write": os.W_OK}[right]) else f"I may not {right} {path}"


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "world"
    print(f"Hello, {name}, from Python {platform.python_version()}.")
    print(f"I am {getpass.getuser()} on {platform.node()}, in {os.getcwd()}.")
    processes = [p for p in os.listdir("/proc") if p.isdigit()]
    print(f"I see {len(processes)} processes.")
    print(f"{may(str(pathlib.Path.home()), 'write')}, {may('/usr', 'write')}, and {may('/etc/shadow', 'read')}.")
    print(f"And {sum(n * n for n in range(1_000_000))} is the sum of the first million squares.")


main()
