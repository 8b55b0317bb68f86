"""What a program sees of the machine it runs on: run it in a sandbox and outside.

    daytona run -- python3 examples/python/hello.py Ada
"""

import getpass
import os
import pathlib
import platform
import sys


def try_to(what, action):
    try:
        return f"{what}: {action()}"
    except OSError as e:
        return f"{what}: {e.strerror}"


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "world"
    print(f"Hello, {name}, from Python {platform.python_version()}.")
    print(f"I am {getpass.getuser()} on {platform.node()}, in {os.getcwd()}.")
    processes = [p for p in os.listdir("/proc") if p.isdigit()]
    print(f"I see {len(processes)} processes.")
    print(try_to("Writing to my home", lambda: pathlib.Path.home().joinpath("note").write_text("mine")), "bytes.")
    print(try_to("Writing to /usr", lambda: open("/usr/note", "w")) + ".")
    print(try_to("Reading /etc/shadow", lambda: open("/etc/shadow")) + ".")
    print(f"And {sum(n * n for n in range(1_000_000))} is the sum of the first million squares.")


main()
