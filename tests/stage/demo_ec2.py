"""``python -m tests.stage.demo_ec2``: an EC2 of one's own, to try ``--provider=ec2`` without an account (``make demo-ec2``).

moto answers as Amazon would, and behind each instance there is a machine: namespaces on this computer with an address and an sshd.
Needs root.  Ctrl-C ends everything.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from tests.stage.ec2_server import Ec2Server
from tests.stage.stage import Stage, why_no_stage


def main() -> int:
    """Play until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m tests.stage.demo_ec2", description="an EC2 on this computer, to try cloudtask with")
    parser.add_argument("--port", type=int, default=0, help="where the API listens on 127.0.0.1 (default: any free port)")
    parser.add_argument("--boot", type=float, default=2.0, metavar="SECONDS", help="how long a machine boots (default: 2)")
    options = parser.parse_args()
    if reason := why_no_stage():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with Stage(ended=lambda id, why: server.machine_ended(id, why)) as stage:
        server = Ec2Server(stage, boot_seconds=options.boot, commands=True, port=options.port, told=show)
        with server:
            explain(server)
            ended.wait()
            print(f"ending {len(stage.machines)} machines", flush=True)
    return 0


def explain(server: Ec2Server) -> None:
    """What to type in another terminal."""
    lines = ["An EC2 is here. In another terminal:", ""]
    lines += [f"export {name}={value}" for name, value in server.environment.items()]
    lines += ["seq 20 | .venv/bin/cloudtask --provider=ec2 --split=3 'hostname; sleep 1; echo'", "", "Ctrl-C ends it."]
    print("\n".join(lines), flush=True)


def show(line: str) -> None:
    """What happens."""
    print(f"# {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
