"""What a worker without python3 runs instead of the agent: two scripts for ``/bin/sh`` and the standard utilities.

`control` serves requests, one line each, over a channel that stays open; `job` runs one attempt on a channel of its own.  They keep
what has to outlive a connection in ``~/.cloudtask-agent/KEY-sh/``, private, one set of small files for each attempt: ``J.A.pid`` (process
group and start time of its leader, written before the job starts), ``J.A.end`` (how it ended), ``.out`` and ``.err`` (what it wrote),
``.why`` (why we ended it), ``.lost``; and ``acked``, a line for each attempt whose result is safe with the controller.

POSIX sh, held against dash, bash and busybox.  What is not POSIX and used nevertheless: fractions for sleep (tried first), ``setsid``
(with ``set -m`` as the other choice), ``/proc`` (where there is one).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

BOOTSTRAP = "exec /bin/sh -c 'read -r n; eval \"$(dd bs=1 count=$n 2>/dev/null)\"'"
"""The command line for both.  The script follows on stdin behind its length, so that nothing of it shows in ``ps`` and no login shell,
csh or fish, has to understand it.  dd takes exactly that much, byte for byte."""

_SHARED = r"""
nap() { sleep 0.1 2>/dev/null || sleep 1; }
start_of() { # PID: when it began, in ticks since boot (proc(5), field 22); nothing where that is not known
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${line##*) }
  echo "${20}"
}
lives() { # PID, zombies do not
  kill -0 "$1" 2>/dev/null || return 1
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${line##*) }
  test "$1" != Z
}
alive() { # PGID: does any process of the group still run?  Zombies do not.
  kill -0 "-$1" 2>/dev/null || return 1
  test -r /proc/self/stat || return 0
  pg=$1
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    set -- ${line##*) }
    test "$3" = "$pg" && test "$1" != Z && test "$1" != X && return 0
  done
  return 1
}
"""

_CONTROL = r"""
LC_ALL=C; umask 077
echo "$mark"
top=$HOME/.cloudtask-agent
identity() {
  machine=; boot=; start=
  { read -r machine </etc/machine-id || read -r machine </var/lib/dbus/machine-id; } 2>/dev/null
  { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
  start=$(start_of 1)
}
judge() { # HOME: of this boot of this machine, of an earlier one, or foreign (homes may be shared, containers share a boot)
  { read -r machine1 && read -r boot1 && read -r start1; } 2>/dev/null <"$1/identity" || { echo same; return; }
  if test "$machine1 $boot1 $start1" = "$machine $boot $start"; then echo same
  elif test -n "$machine" && test "$machine" = "$machine1" && test "$boot" != "$boot1"; then echo rebooted
  else echo foreign; fi
}
identity
h=$top/$key-sh; copy=1
while test "$(judge "$h")" = foreign; do copy=$((copy + 1)); h=$top/$key-sh~$copy; done
rebooted=0; test "$(judge "$h")" = rebooted && rebooted=1
fresh=0; test -d "$h" || fresh=1
if ! problem=$({ mkdir -p "$h" && : >"$h/probe" && rm "$h/probe"; } 2>&1); then echo "problem $problem"; echo '= 0'; exit 1; fi
leader() {
  if command -v setsid >/dev/null 2>&1; then echo setsid; return; fi
  (set -m; /bin/sh -c 'kill -0 "-$$" && echo monitor' & wait) 2>/dev/null
}
remember() { printf '%s\n' "$machine" "$boot" "$start" >"$h/identity"; }
test $fresh = 0 || remember
epoch=0; connection=0
{ read -r epoch connection <"$h/epoch"; } 2>/dev/null
ready=0; test -e "$h/ready" && ready=1
cpus=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
echo "home $h"; echo "fresh $fresh"; echo "rebooted $rebooted"; echo "ready $ready"; echo "epoch $epoch"; echo "cpus $cpus"; echo "pid $$"
echo "uid $(id -u)"; echo "machine $machine"; echo "boot $boot"; echo "start $start"; echo "leader $(leader)"
echo '= 0'

ours() { # BASE: sets pg; true where its process group can only be that of the attempt
  pg=; began=; since=
  { read -r pg began since <"$h/$1.pid"; } 2>/dev/null
  test -n "$pg" || return 1
  leads=$(start_of "$pg")
  test -z "$leads" || test -z "$began" || test "$leads" = "$began"
}
# One grep finds the few processes worth a look, if it can read past a NUL: busybox's cannot.
if printf 'a\0b\n' | grep -qF b; then candidates() { grep -lsF "$1" /proc/[0-9]*/environ; }
else candidates() { ls -d /proc/[0-9]*/environ; }
fi
escaped() { # BASE: processes that left the group but still have the attempt's environment
  for file in $(candidates "CLOUDTASK_AGENT=$key-sh/$1" 2>/dev/null); do
    { tr '\0' '\n' <"$file" | grep -qxF "CLOUDTASK_AGENT=$key-sh/$1"; } 2>/dev/null || continue
    pid=${file#/proc/}; echo "${pid%/environ}"
  done
}
strike() { # SIGNAL BASE
  for pid in $(ours "$2" && echo "-$pg"; escaped "$2"); do
    kill "-$1" "$pid" 2>/dev/null && kill -CONT "$pid" 2>/dev/null
  done
  return 0
}
running() { # BASE
  if ours "$1" && alive "$pg"; then return 0; fi
  test -n "$(escaped "$1")"
}
bases() { for file in "$h"/*.pid; do test -e "$file" || continue; base=${file##*/}; echo "${base%.pid}"; done; }

# --- the requests ---
do_hello() { # EPOCH CONNECTION: obey this one from now on
  if test "$1" -lt "$epoch" || { test "$1" -eq "$epoch" && test "$2" -lt "$connection"; }; then echo "overtaken $epoch"; return 0; fi
  echo "$1 $2" >"$h/epoch"
  mine="$1 $2"
}
do_takeover() { # what ran when the last connection was cut is lost, and ends
  for base in $(bases); do
    test "$rebooted" = 0 && test -e "$h/$base.end" || : >"$h/$base.lost"
    test "$rebooted" = 0 && strike TERM "$base"
  done
  remember
}
do_remaining() { test "$rebooted" = 0 || return 0; for base in $(bases); do running "$base" && echo "$base"; done; return 0; }
do_strike() { test -n "$3" && echo "$3" >"$h/$2.why"; strike "$1" "$2"; }
do_running() { running "$1" && echo running; return 0; }
size() { set -- $(ls -ln "$1" 2>/dev/null); echo "${5:-0}"; }
do_rows() {
  test -e "$h/acked" && sed 's/^/acked /' "$h/acked"
  for base in $(bases); do
    pg=; began=; since=0; why=; status=; ended=0
    { read -r pg began since <"$h/$base.pid"; } 2>/dev/null
    { read -r why <"$h/$base.why"; } 2>/dev/null
    if test -e "$h/$base.lost"; then echo "lost $base"; continue; fi
    { read -r status ended slot <"$h/$base.end"; } 2>/dev/null || { echo "lost $base"; continue; }
    echo "ended $base $status $slot $((ended - since)) $(size "$h/$base.out") $(size "$h/$base.err") ${why:--}"
  done
}
do_ack() {
  for base in "$@"; do
    status=0
    { read -r status ended <"$h/$base.end"; } 2>/dev/null
    echo "$base $status" >>"$h/acked"
    rm -f "$h/$base".*
  done
}
do_lose() { : >"$h/$1.lost"; test -e "$h/$1.pid" && echo began; rm -f "$h/$1.out" "$h/$1.err"; }
do_beat() { # LEASE: as an agent does, let the machine's timer see until when it is used
  { touch -d "@$(($(date +%s) + $1))" "$h/lease"; } 2>/dev/null
  read -r current <"$h/epoch"
  test "$current" = "$mine" || { echo "overtaken ${current% *}"; return 0; }
  set -- $(df -Pk "$h" | tail -n 1)
  echo "free $4"
}
do_ready() { : >"$h/ready"; }
do_bye() { rm -rf "$h"; rmdir "$top" 2>/dev/null; cd /; return 0; }

# --- the key ---
keys=$HOME/.ssh/authorized_keys
real() { # FILE: where its symbolic links lead
  hops=0; real=$1
  while test -h "$real" && test $hops -lt 40; do
    to=$(ls -ld "$real"); to=${to##* -> }; hops=$((hops + 1))
    case $to in /*) real=$to;; *) real=${real%/*}/$to;; esac
  done
}
lock() {
  tries=0
  until mkdir "$HOME/.ssh/.cloudtask-lock" 2>/dev/null; do
    tries=$((tries + 1))
    # Nobody holds it that long: its holder was killed.
    if test $tries -gt 100; then rmdir "$HOME/.ssh/.cloudtask-lock" 2>/dev/null; tries=0; fi
    nap
  done
}
unlock() { rmdir "$HOME/.ssh/.cloudtask-lock"; }
rewrite() { # a new text from stdin into the place of $keys, with mode, owner and links as they were
  real "$keys"
  new=$real.cloudtask-$$
  { test ! -e "$real" || cp -p "$real" "$new"; } && cat >"$new" && mv -f "$new" "$real" || { rm -f "$new"; return 1; }
}
do_authorise() { # COMMENT LINE...: a line for the session, and a note that this worker uses it
  comment=$1; shift
  test -d "$HOME/.ssh" || mkdir "$HOME/.ssh" || return 1
  lock
  mkdir -p "$top/users-of-$comment" && : >"$top/users-of-$comment/$key"
  if grep -qsxF -e "$*" "$keys"; then status=0; else
    { test ! -s "$keys" || { cat "$keys"; test -z "$(tail -c 1 "$keys")" || echo; } | grep -vF -e "$comment"; echo "$*"; } >"$h/keys" &&
      rewrite <"$h/keys"; status=$?
    rm -f "$h/keys"
  fi
  unlock
  return $status
}
do_unauthorise() { # COMMENT: the line goes with the last worker that uses it
  test -e "$keys" || return 0
  lock
  rm -f "$top/users-of-$1/$key"; rmdir "$top/users-of-$1" 2>/dev/null
  status=0
  if test ! -d "$top/users-of-$1" && grep -qsF -e "$1" "$keys"; then
    { grep -vF -e "$1" "$keys" || :; } >"$h/keys" && rewrite <"$h/keys"; status=$?
    rm -f "$h/keys"
  fi
  unlock
  return $status
}
mine=
while read -r verb arguments; do
  set -f; set -- $arguments; set +f
  "do_$verb" "$@" </dev/null 2>&1
  echo "= $?"
done
"""

_STARTER = r"""
{ read -r line <"/proc/$$/stat"; } 2>/dev/null && set -- "$1" "$2" "$3" "$4" "$5" "$6" ${line##*) }
umask 077
echo "$$ ${26} $(date +%s)" >"$1.pid" || { echo refused >&4; exit 126; }
# Whoever takes over sees that file, or we see here that somebody did.
{ read -r now <"${1%/*}/epoch"; } 2>/dev/null
if test "$now" != "$6" || test -e "$1.lost"; then rm -f "$1.pid"; echo late >&4; exit 126; fi
exec </dev/null >>"$1.out" 2>>"$1.err"
umask "$2"
echo "start $$" >&4
eval "$cloudtask_exports"; unset cloudtask_exports
if test -n "$3"; then cd -- "$3" || { echo unstarted >&4; exit 126; }; fi
if test "$4" = staged; then exec /bin/sh "$1.code" 4>&-; else exec /bin/sh -c "$5" 4>&-; fi
"""

_JOB = r"""
u=$(umask); umask 077
b=$h/$id
echo "$mark"
prepare() { test -d "$h" && : >"$b.out" && : >"$b.err"; }
if ! problem=$(prepare 2>&1); then echo "F $problem"; exit 1; fi
size() { set -- $(ls -ln "$1" 2>/dev/null); echo "${5:-0}"; }
pump() { # LETTER SPOOL SENT MOST: what the spool (stdin, read as far as SENT) has more of, MOST bytes at most; sets n to how much
  n=$(($(size "$2") - $3))
  test $n -le $4 || n=$4
  # One byte past the limit tells the controller that there was more.
  test $n -le $((limit + 1 - $3)) || n=$((limit + 1 - $3))
  test $n -gt 0 || { n=0; return 0; }
  echo "$1 $n"
  blocks=$((n / 65536)); rest=$((n % 65536))
  test $blocks -eq 0 || dd bs=65536 count=$blocks 2>/dev/null
  test $rest -eq 0 || dd bs=$rest count=1 2>/dev/null
}
flow() { # MOST
  if test -s "$b.out"; then if test $O -le $limit; then pump O "$b.out" $O $1 <&5; O=$((O + n)); else : >"$b.out"; fi; fi
  if test -s "$b.err"; then if test $E -le $limit; then pump E "$b.err" $E $1 <&6; E=$((E + n)); else : >"$b.err"; fi; fi
}
finish_group() { # what is left of the job's group ends
  test -n "$pgid" || return 0
  alive "$pgid" || return 0
  kill -TERM "-$pgid" 2>/dev/null && kill -CONT "-$pgid" 2>/dev/null
  naps=0
  while alive "$pgid" && test $naps -lt $((grace * 10)); do nap; naps=$((naps + 1)); done
  kill -KILL "-$pgid" 2>/dev/null
  naps=0
  while alive "$pgid" && test $naps -lt 600; do nap; naps=$((naps + 1)); done
}
ended() { # STATUS
  finish_group
  test -z "$lost" || return 0
  flow 1152921504606846976
  used=$(tail -n 1 "$b.end" 2>/dev/null)
  echo "X $1 $unstarted ${used:-0m0s 0m0s}"
}
tell() {
  trap '' PIPE
  exec 3<&- 5<"$b.out" 6<"$b.err"
  O=0; E=0; pgid=; lost=; unstarted=0
  while read -r w p q; do
    case $w in
    runner) runner=$p; feeder=$q;;
    start) pgid=$p; echo "S $p"; test -z "$lost" || finish_group;;
    unstarted) unstarted=1;;
    refused) unstarted=2;;
    late) unstarted=3;;
    tick)
      if lives "$runner"; then flow 1048576; echo T; continue; fi
      # Killed, or it has ended meanwhile: then the word of that is still behind this one.
      { read -r p q <"$b.end"; } 2>/dev/null && ended "$p"
      break;;
    cut) lost=1; : >"$b.lost"; finish_group;;
    end) ended "$p"; break;;
    esac
  done
  kill "$feeder" 2>/dev/null
}
run() {
  exec 4>&1 >/dev/null 2>&1
  ( while read -r w <&3; do echo "$w" >&4; done; echo cut >&4 ) &
  /bin/sh -c 'echo "runner $PPID $1"' runner $! >&4
  exec 3<&-
  case $workdir in "~"|"~/"*) workdir=$HOME${workdir#"~"};; esac
  cloudtask_exports=$exports; export cloudtask_exports
  # Not in the background: there a shell without job control has SIGINT and SIGQUIT ignored, for good.
  if test "$leader" = setsid; then
    setsid /bin/sh -c "$starter" cloudtask "$b" "$u" "$workdir" "$staged" "$code" "$rank"
  else
    set -m
    /bin/sh -c "$starter" cloudtask "$b" "$u" "$workdir" "$staged" "$code" "$rank" &
    wait $!
  fi
  s=$?
  { echo "$s $(date +%s) $slot" && times; } >"$b.tmp" && mv -f "$b.tmp" "$b.end"
  echo "end $s" >&4
}
exec 3<&0 </dev/null
# Whatever happens is a word in the pipe: what the controller says, that the job started, that it ended.
run | tell
"""


def control(key: str, mark: str) -> bytes:
    """The script that serves requests for the worker called ``key``, and says ``mark`` first."""
    return _script({"key": key, "mark": mark}, _SHARED + _CONTROL)


def job(home: str, mark: str, values: Mapping[str, str | bytes], exports: Mapping[str, str]) -> bytes:
    """The script that runs one attempt, with its files in ``home`` (as the control script told it).

    ``values``: ``id`` (J.A), ``code``, ``staged`` (``staged``: the code is in ``J.A.code`` instead), ``workdir`` (empty: where the login
    shell is), ``leader`` (``setsid`` or ``monitor``), ``slot``, ``grace`` (whole seconds), ``limit`` (bytes of each stream), ``rank``
    (epoch and connection that it belongs to, with a space between).
    ``exports``: the job's environment beside the login's; ``CLOUDTASK_AGENT`` in it, `tag`, is how a process that left its group is found.
    """
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    return _script({"h": home, "mark": mark, **values, "starter": _STARTER, "exports": "\n".join(lines)}, _SHARED + _JOB)


def tag(key: str, base: str) -> str:
    """The value of ``CLOUDTASK_AGENT`` for the attempt J.A."""
    return f"{key}-sh/{base}"


def fetch(home: str, mark: str, name: str) -> bytes:
    """A script that prints the file ``name`` of the home."""
    return _script({"h": home, "mark": mark, "name": name}, _SHARED + 'echo "$mark"; exec cat "$h/$name"\n')


def stage(home: str, mark: str, name: str) -> bytes:
    """A script that writes the rest of its stdin into the file ``name`` of the home, and says how many bytes that were."""
    text = 'umask 077; echo "$mark"; cat >"$h/$name"; wc -c <"$h/$name"\n'
    return _script({"h": home, "mark": mark, "name": name}, _SHARED + text)


def _script(values: Mapping[str, str | bytes], text: str) -> bytes:
    """The script behind its length, as `BOOTSTRAP` reads it."""
    assignments = b"".join(b"%b=%b\n" % (name.encode(), _quote(value)) for name, value in values.items())
    script = assignments + text.encode()
    return b"%d\n%b" % (len(script), script)


def _quote(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return b"'" + raw.replace(b"'", b"'\\''") + b"'"
