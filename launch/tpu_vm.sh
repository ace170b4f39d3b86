#!/usr/bin/env bash
# Trains on a TPU slice of Compute Engine, and starts again after preemptions.
set -uo pipefail

usage() {
  cat >&2 <<'USAGE'
launch/tpu_vm.sh --name=NAME --zone=ZONE
  [--type=TYPE --runtime=VERSION [--spot]] [--wheel=FILE] [--setup=COMMAND]
  [--python=COMMAND] [--limit=SECONDS] [--retries=N] --
  --config=... --workdir=gs://...

  --name, --zone  The slice (a TPU VM).
  --type          The type of a new slice, e.g. v5litepod-16. Without it, the
                  slice must exist. With it, the launcher asks for the slice as
                  a queued resource of the same name, also after a preemption.
  --runtime       The version of a new slice, e.g. v2-alpha-tpuv5-lite.
  --spot          A new slice is a spot slice.
  --wheel         The wheel of mlir_jax, made by
                  pip wheel --no-deps --wheel-dir=dist .
                  All hosts get it, and install it with its extras tpu and gcs
                  in a new environment, ~/.mlir_jax.venv, with the versions of
                  constraints.txt: after a preemption, the run goes on with the
                  same libraries. A host without Python 3.11 downloads it (uv).
  --setup         A command for all hosts, after the wheel is installed. Both
                  run before the first start and on each new slice.
  --python        The interpreter on the hosts. With --wheel, the environment is
                  made from it (3.11). Without --wheel, it has mlir_jax already
                  (python3).
  --limit         After a host has ended, kill the others when they take longer
                  (300); more than the config's hosts.silent_seconds.
  --retries       Stop after this many starts in a row without a new checkpoint
                  (3).

The output of each host goes to logs/RUN/attempt-K/host-I.log here; the terminal
shows host 0. After 75, 69, a lost connection or a preemption, the run starts
again. After 2 (refused), 130 (interrupted) and other faults, the launcher ends.
It passes SIGTERM and SIGINT on: the run saves and ends with 75. It does not
delete the slice at the end. If you use an ssh-agent, it needs gcloud's key:
ssh-add ~/.ssh/google_compute_engine.
USAGE
  exit 2
}

say() { echo "tpu_vm.sh: $*" >&2; }
refuse() {
  say "$*"
  exit 2
}

# Called before any arithmetic. There the shell would run the command in a text
# like a[$(command)], and read 010 as eight.
check_whole() {
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] ||
    refuse "$(printf '%s=%q: give a whole number above 0.' "$1" "$2")"
}
# Refuses what is not a name: gcloud could read it as a flag or a pattern.
check_name() {
  [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    refuse "$(printf '%s=%q: not a name.' "$1" "$2")"
}

name='' zone='' type='' runtime='' spot='' wheel='' setup='' python=''
limit=300 retries=3
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --wheel=*) wheel=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --limit=*) limit=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --spot) spot=yes ;;
    --)
      shift
      break
      ;;
    *)
      say "$(printf '%q' "$1"): this launcher has no such flag."
      usage
      ;;
  esac
  shift
done
[[ -n $name && -n $zone && $# -gt 0 ]] || usage
check_name --name "$name"
check_name --zone "$zone"
[[ -z $type ]] || check_name --type "$type"
[[ -z $runtime ]] || check_name --runtime "$runtime"
check_whole --limit "$limit"
check_whole --retries "$retries"
[[ -z $type || -n $runtime ]] || refuse "--type=$type: give --runtime, too."
constraints=$(dirname -- "${BASH_SOURCE[0]}")/../constraints.txt
if [[ -n $wheel ]]; then
  file=${wheel##*/}
  # Pip reads the version from the name.
  [[ $file =~ ^[A-Za-z0-9][A-Za-z0-9._+-]*\.whl$ && -f $wheel ]] ||
    refuse "$(printf -- '--wheel=%q: not the file of a wheel; make it with' \
      "$wheel")" "pip wheel --no-deps --wheel-dir=dist ."
  [[ -f $constraints ]] || refuse "--wheel: $constraints is missing."
  [[ $python =~ ^[A-Za-z0-9~/._+-]*$ ]] ||
    refuse "$(printf -- '--python=%q: with --wheel, give a path or a version.' \
      "$python")"
fi
# The trainer uses the last --workdir, and none after a --. Do the same.
workdir=''
arguments=("$@")
for ((i = 0; i < $#; i++)); do
  case ${arguments[i]} in
    --) break ;;
    --workdir=* | -workdir=*) workdir=${arguments[i]#*=} ;;
    --workdir | -workdir) workdir=${arguments[i + 1]:-} ;;
  esac
done
[[ $workdir == gs://* ]] ||
  refuse "--workdir=$workdir: the hosts share no disk; give a gs:// folder."
workdir=${workdir%/}
case ${workdir#gs://} in
  *[]*?[[:cntrl:]]*)
    # gcloud reads these as a pattern, and would list other runs, too.
    refuse "$(printf '%q' "--workdir=$workdir"): give a folder without *, ?, [," \
      "] and control characters."
    ;;
  '' | . | .. | */ | */. | */..) refuse "--workdir=$workdir: name a folder." ;;
esac
scratch=$(mktemp -d) || refuse "There is no room for temporary files."
errors=$scratch/errors
trap 'rm -rf "$scratch"' EXIT

tpus() { gcloud compute tpus "$@" --zone="$zone"; }
# Prints a field of the slice ($1 is tpu-vm) or of its queued resource; nothing
# if there is none.
describe() {
  local tries=0
  until tpus "$1" describe "$name" --format="value($2)" 2>"$errors"; do
    grep -q NOT_FOUND "$errors" && return
    ((++tries < 5)) || refuse "gcloud cannot say: $(tail -n 1 "$errors")"
    sleep 10
  done
}
slice_state() { describe tpu-vm state; }
queue_state() { describe queued-resources state.state; }
# Runs the command $2 on all hosts, for at most $1 seconds.
on_all() {
  timeout "$1" gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" \
    --worker=all --command="$2"
}

# Copies the wheel to all hosts, installs it there, and runs the user's command.
set_up() {
  local versions=$scratch/mlir_jax.constraints.txt install
  if [[ -n $wheel ]]; then
    # The version of libtpu follows from the version of JAX.
    grep -v '^libtpu==' "$constraints" >"$versions"
    # gcloud would read a colon in the wheel's path as the end of a host's name.
    cp -- "$wheel" "$scratch/$file" &&
      timeout 600 gcloud compute tpus tpu-vm scp "$scratch/$file" "$versions" \
        "$name:" --zone="$zone" --worker=all || return
    install="wheel=$file base=$base; $INSTALL"
  fi
  on_all 3600 "${install:-true}${setup:+ && eval $(printf %q "$setup")}"
}

# Returns when the slice is ready; sets $fresh if it is new.
ensure_slice() {
  local state queued create
  while :; do
    state=$(slice_state) || exit
    [[ $state == READY ]] && return
    [[ -n $type ]] ||
      refuse "Slice $name in $zone is ${state:-not there}, not READY; with" \
        "--type and --runtime the launcher asks for it."
    queued=$(queue_state) || exit
    case $queued:$state in
      :*)
        say "Asking for $type $name."
        create=(queued-resources create "$name" --node-id="$name")
        create+=(--accelerator-type="$type" --runtime-version="$runtime")
        [[ -n $spot ]] && create+=(--spot)
        tpus "${create[@]}" || refuse "The slice could not be asked for."
        fresh=yes
        ;;
      FAILED:*) refuse "Queued resource $name has failed; describe it." ;;
      SUSPENDED:* | SUSPENDING:* | ACTIVE:PREEMPTED | ACTIVE:TERMINATED)
        say "Slice $name was preempted."
        tpus queued-resources delete "$name" --force --quiet ||
          refuse "The preempted slice could not be deleted."
        ;;
      *)
        say "Waiting for $name (${queued,,})."
        sleep 30
        ;;
    esac
  done
}

# Prints the step of the last checkpoint; -1 if there is none.
last_step() {
  local line last=-1
  while read -r line; do
    line=${line%/}
    line=${line##*/}
    [[ $line =~ ^(0|[1-9][0-9]{0,17})$ ]] && ((line > last)) && last=$line
  done < <(gcloud storage ls "$workdir/checkpoints/" 2>/dev/null)
  echo "$last"
}

# Installs the wheel on a host. uv finds or downloads the version of Python.
# shellcheck disable=SC2016  # The host expands it.
INSTALL='cd && export PIP_BREAK_SYSTEM_PACKAGES=1 PATH="$HOME/.local/bin:$PATH";
 { command -v uv >/dev/null || python3 -m pip install --quiet --user uv; } &&
 rm -rf ~/.mlir_jax.venv &&
 uv venv --quiet --python="$base" ~/.mlir_jax.venv &&
 uv pip install --quiet --python="$HOME/.mlir_jax.venv/bin/python"
 --constraint="$HOME/mlir_jax.constraints.txt" "./$wheel[tpu,gcs]"'
INSTALL=${INSTALL//$'\n'/}

# The commands on a host. The trainer leads a session and writes its number to a
# file. So it can be found after the connection is lost, and an earlier trainer
# can be killed.
# shellcheck disable=SC2016  # The host expands these.
FIND='p=$(cat ~/.mlir_jax.pid 2>/dev/null) &&
 case $p in ""|*[!0-9]*) false;; esac &&
 grep -qs mlir_jax.train "/proc/$p/cmdline" &&'
FIND=${FIND//$'\n'/}
# The secret of the run comes through standard input, not on a command line,
# which all users can see. If it does not come whole, the connection was lost.
# shellcheck disable=SC2016
SECRET='s=$(head -c 64); [ ${#s} = 64 ] ||
 { echo "The secret of the run did not arrive." >&2; exit 69; };
 f=$HOME/.mlir_jax.secret; rm -f "$f";
 (umask 077; printf %s "$s" >"$f") || exit 69;
 unset s MLIR_JAX_SECRET; export MLIR_JAX_SECRET_FILE="$f"'
SECRET=${SECRET//$'\n'/}
# shellcheck disable=SC2016
RUN='setsid --wait bash -c '\''echo $$ >~/.mlir_jax.pid; exec "$@"'\'' run'
base=${python:-3.11}
# shellcheck disable=SC2088  # The host expands it.
if [[ -n $wheel ]]; then python='~/.mlir_jax.venv/bin/python'; fi
printf -v quoted ' %q' "$@"
run="$FIND kill -KILL -- -\$p && sleep 5; $RUN"
run+=" ${python:-python3} -m mlir_jax.train --distributed$quoted"

pids=() stopping=0
pass_on() {
  ((stopping++))
  ((${#pids[@]})) || exit 75
  on_all 120 "$FIND kill -TERM -- -\$p" >/dev/null 2>&1 &
}
trap pass_on TERM INT HUP

folder=logs/${workdir##*/} logs=$folder
# Starts the trainer on all hosts, and waits; fills $statuses.
attempt() {
  local hosts i running id once secret deadline='' number=1
  hosts=$(describe tpu-vm 'networkEndpoints.len()') || exit
  [[ -n $hosts ]] || return 1
  [[ $hosts =~ ^[1-9][0-9]{0,5}$ ]] ||
    refuse "$(printf 'gcloud cannot say how many hosts there are: %q' "$hosts")"
  mkdir -p "$folder" || refuse "Cannot write to $folder."
  while logs=$folder/attempt-$number && [[ -e $logs || -L $logs ]]; do
    ((number++))
  done
  mkdir "$logs" || refuse "Cannot write to $folder."
  say "$hosts hosts; logs in $logs."
  # gcloud repeats a command when its connection was lost. But a process that
  # has left a run cannot join it again, so the second command ends with 69.
  id=$$-$RANDOM-$number
  once="[ \"\$(cat ~/.mlir_jax.id 2>/dev/null)\" != $id ] ||"
  once+=" { $FIND kill -KILL -- -\$p; exit 69; }; echo $id >~/.mlir_jax.id"
  : >"$logs/host-0.log" # tail may start before it is opened.
  secret=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
  pids=() statuses=()
  for ((i = 0; i < hosts; i++)); do
    setsid gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" \
      --worker="$i" --command="$once; $SECRET; $run" \
      >"$logs/host-$i.log" 2>&1 < <(printf %s "$secret") &
    pids[i]=$! statuses[i]=''
  done
  tail -n +1 -f -s 0.2 --pid="${pids[0]}" "$logs/host-0.log" &
  while :; do
    running=()
    for i in "${!pids[@]}"; do
      [[ -z ${statuses[i]} ]] || continue
      if kill -0 "${pids[i]}" 2>/dev/null; then
        running+=("$i")
        continue
      fi
      wait "${pids[i]}"
      statuses[i]=$?
      ((statuses[i])) && say "Host $i ended with status ${statuses[i]}."
      : "${deadline:=$((SECONDS + limit))}"
    done
    ((${#running[@]})) || break
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      say "Killing what hangs on host ${running[*]}."
      on_all 120 "$FIND kill -KILL -- -\$p" >/dev/null 2>&1
      for i in "${running[@]}"; do
        kill -KILL -- "-${pids[i]}" 2>/dev/null
      done
    fi
    sleep 1
  done
  pids=()
}

stalled=0 before='' fresh=yes
while :; do
  ensure_slice
  if [[ -n $fresh && -n $wheel$setup ]]; then
    say "Setting up all hosts."
    failed=0
    until set_up; do
      ((stopping)) && exit 75
      [[ $(slice_state) == READY ]] || continue 2 # It was preempted.
      ((++failed < 3)) ||
        refuse "A host was not set up; the lines above say why."
      say "A host was not set up; trying again."
      sleep 30
    done
  fi
  fresh=''
  : "${before:=$(last_step)}"
  attempt || statuses=(255) # No host was reached.

  again='' done=yes fault=1
  for status in "${statuses[@]}"; do
    case $status in
      0) ;;
      2)
        say "Refused (status 2), not retried: mend what the logs name."
        exit 2
        ;;
      130)
        say "Interrupted (status 130), not retried; the same command goes on."
        exit 130
        ;;
      1 | 134) done='' fault=$status ;;
      *) done='' again=yes ;;
    esac
  done
  ((stopping)) && [[ -z $done ]] && exit 75
  if [[ -n $done ]]; then
    say "Done. The slice is still there, and costs. Delete it with: gcloud" \
      "compute tpus queued-resources delete $name --zone=$zone --force"
    exit 0
  fi
  # gcloud also ends with 1 if the slice was gone before it connected.
  if [[ -z $again && $(slice_state) == READY ]]; then
    say "A fault (status $fault), not retried; see $logs."
    exit "$fault"
  fi
  now=$(last_step)
  if ((now > before)); then stalled=0; else ((stalled++)); fi
  before=$now
  if ((stalled >= retries)); then
    say "$stalled starts in a row brought no new checkpoint; see $logs."
    exit 69
  fi
  say "Starting again from the checkpoint of step $now."
done
