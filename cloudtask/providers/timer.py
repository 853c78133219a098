"""The machine's own safety: a script that powers it off when nobody uses it, though controller, credentials and network are gone.

It runs as root from boot on, looks every minute or so, and acts on the second look in a row that says the same.  A machine is in use

* for ``first`` seconds after the script's start, until somebody comes;
* while a lease runs: the file ``lease`` in an agent's home, whose modification time is when it ends (see `cloudtask.agent.home`), or
  `KEEP_PATH`, by which a machine is kept for the next session;
* for ``grace`` seconds after the last lease file is gone, as the agent takes it with it: the controller destroys the machine then;
* while a job runs, that is a process with ``CLOUDTASK_ATTEMPT`` in its environment, but for ``limit`` seconds at most after all that.

Time is the kernel's uptime, and how long a lease runs is worked out once, when its file changes: a clock that is set harms nothing.
POSIX sh, held against dash and busybox's; besides, coreutils or busybox.  What users of the machine can write is never read, only
looked at, so that nobody can make the script wait.
"""

from __future__ import annotations

import shlex

TIMER_PATH = "/var/lib/cloudtask/cloudtask-timer"
"""Where the script stands on a machine: not under /run, which may be mounted noexec and is empty after a reboot."""
KEEP_PATH = "/var/lib/cloudtask/keep"
"""Held until this file's modification time; see `keep_command`."""

GRACE = 600
PAUSE = 45
PATIENCE = 60

_SCRIPT = r"""#!/bin/sh
# cloudtask-timer: powers this machine off when nobody uses it. `touch -d "8 hours" %(keep)s` holds it that long.
%(assignments)s
PATH=${PATH:-/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH; LC_ALL=C; export LC_ALL
trap '' HUP
main=
if [ "${1:-}" = --main ] || [ $$ -eq 1 ]; then main=yes; trap 'exit 0' TERM INT; fi
pidfile=$root/run/cloudtask-timer.pid; other=
if [ -z "$main" ]; then
  { read -r other <"$pidfile"; } 2>/dev/null
  [ "${other:-$$}" = $$ ] || ! "${t}grep" -qs cloudtask-timer "$root/proc/$other/cmdline" || exit 0
  { echo $$ >"$pidfile"; } 2>/dev/null
  { echo -1000 >"$root/proc/$$/oom_score_adj"; } 2>/dev/null
fi
nap() { "${t}sleep" "$1" & wait $!; }
clock() { # sets up: seconds since boot, which nobody can set
  { read -r uptime _ <"$root/proc/uptime"; } 2>/dev/null || uptime=
  case ${uptime%%%%.*} in ''|*[!0-9]*) up=$((up + pause));; *) up=${uptime%%%%.*};; esac
}
look() { # FILE...: sets here where a lease is there, and held to the uptime at which the last one ends
  for file; do
    [ -f "$file" ] && [ ! -h "$file" ] || continue
    case $file in *[\|=]*) continue;; esac
    ends=$("${t}stat" -c %%Y "$file" 2>/dev/null || "${t}date" -r "$file" +%%s 2>/dev/null)
    case $ends in ''|*[!0-9]*) continue;; esac
    here=yes
    case $seen in
    *"|$ends $file="*) end=${seen##*"|$ends $file="}; end=${end%%%%|*};;
    *) left=$((ends - now)); [ $left -lt 2592000 ] || left=2592000; end=$((up + left));;
    esac
    known="$known|$ends $file=$end"
    [ "$end" -le "$held" ] || held=$end
  done
}
limited=; "${t}timeout" 9 "${t}true" 2>/dev/null && limited="${t}timeout 20"
environments() { # of all processes, a variable a line; a lock in the kernel may hold up who reads them
  { $limited "${t}cat" "$root"/proc/[0-9]*/environ; [ $? -lt 124 ] || echo CLOUDTASK_ATTEMPT=; } 2>/dev/null | "${t}tr" '\0' '\n'
}
homes() { # of users, and of agents that were given another
  { "${t}sed" -n 's/^\([^:]*:\)\{5\}\(\/[^:]*\).*/\2/p' "$root/etc/passwd" 2>/dev/null; environments | "${t}sed" -n 's/^HOME=\//\//p'; } |
    "${t}sort" -u
}
leases() {
  now=$("${t}date" +%%s); case $now in ''|*[!0-9]*) now=0;; esac
  held=0; known=
  look "$root%(keep)s"
  here=
  look "$root"/root/.cloudtask-agent/*/lease "$root"/home/*/.cloudtask-agent/*/lease "$root"/var/tmp/cloudtask-agent-*/*/lease
  found=$(homes)
  IFS=$lines; set -f
  set -- $found
  set +f; unset IFS
  for home; do look "$root$home"/.cloudtask-agent/*/lease; done
  seen=$known
}
jobs_run() { environments | "${t}grep" -q CLOUDTASK_ATTEMPT=; } # where that cannot be told they do
ask() { # COMMAND...: and wait for what comes of it
  program=$t$1; shift
  command -v "$program" >/dev/null 2>&1 || return 0
  "$program" "$@" </dev/null >/dev/null 2>&1 &
  nap "$patience"
}
power_off() {
  echo "cloudtask-timer: nobody uses this machine: it powers itself off"
  [ -z "$main" ] || exit 0
  while :; do
    ask systemctl poweroff; ask poweroff; ask shutdown -h now; ask busybox poweroff; ask poweroff -f
    if [ "$("${t}readlink" "$root/proc/self/ns/pid")" != 'pid:[4026531836]' ]; then
      "${t}kill" -TERM 1 # a container ends with its first process; the key below is its host's
    else
      for key in s u o; do { echo 1 >"$root/proc/sys/kernel/sysrq"; echo $key >"$root/proc/sysrq-trigger"; } 2>/dev/null; nap 5; done
    fi
    nap "$patience"
  done
}
lines='
'
up=0; seen=; last=; strikes=0
clock; began=$up
while :; do
  nap "$pause"
  clock; leases
  wanted=$((began + first))
  [ "$held" -le "$wanted" ] || wanted=$held
  if [ -n "$here" ]; then last=$up
  elif [ -n "$last" ] && [ $((last + grace)) -gt "$wanted" ]; then wanted=$((last + grace)); fi
  if [ "$up" -lt "$wanted" ]; then strikes=0
  elif [ "$up" -lt $((wanted + limit)) ] && jobs_run; then strikes=0
  else strikes=$((strikes + 1)); [ $strikes -lt 2 ] || power_off; fi
done
"""

_START = (
    "command -v systemd-run >/dev/null 2>&1 && "
    "systemd-run --quiet --unit=cloudtask-timer --property=Restart=on-failure /bin/sh {path} </dev/null >/dev/null 2>&1 || "
    "if command -v setsid >/dev/null 2>&1; then setsid /bin/sh {path} </dev/null >/dev/null 2>&1 & "
    "else (trap '' HUP; /bin/sh {path} </dev/null >/dev/null 2>&1 &) fi"
)


def timer_script(
    first: int,
    limit: int,
    *,
    grace: int = GRACE,
    pause: int = PAUSE,
    patience: int = PATIENCE,
    root: str = "",
    tools: str = "",
) -> str:
    """The script; seconds all.  Equal arguments give equal text.

    ``pause`` is between two looks, ``patience`` how long each way to power off may take.  With ``--main``, or as process 1, it ends
    instead, and the container with it.  ``root`` and ``tools`` are for tests: what stands before the paths that it looks at, and before
    the programs that it starts.
    """
    numbers = {"first": first, "limit": limit, "grace": grace, "pause": pause, "patience": patience}
    assignments = [f"{name}={int(value)}" for name, value in numbers.items()]
    assignments += [f"root={shlex.quote(root)}", f"t={shlex.quote(tools)}"]
    return _SCRIPT % {"assignments": " ".join(assignments), "keep": KEEP_PATH}


def start_command(path: str = TIMER_PATH) -> str:
    """Shell code, one line, that starts the script at ``path`` in the background, apart from whoever starts it.

    A second timer sees the first one and leaves.  Through systemd where it is there, so that it outlives the unit it is started from.
    """
    return _START.format(path=shlex.quote(path))


def keep_command(seconds: int) -> str:
    """Shell code, one line, for root: hold the machine for so long from now, whoever uses it."""
    until = f'"@$(($(date +%s) + {int(seconds)}))"'
    return f"mkdir -p {KEEP_PATH.rpartition('/')[0]} && touch -d {until} {KEEP_PATH}"
