#!/usr/bin/env bash
# Trains with N processes on this machine, and starts them again after faults.
set -uo pipefail

usage() {
  cat >&2 <<'USAGE'
launch/local.sh -n N [-d DEVICES] [-w SECONDS] [-r RETRIES] --
  --config=... --workdir=...

  -n N        The number of processes.
  -d DEVICES  The number of devices, split evenly over the processes. On a
              machine with GPUs: the first DEVICES of them (default: all).
              Otherwise: CPU devices (default: one per process).
  -w SECONDS  After a process has ended, kill the others when they take longer
              (300); more than the config's hosts.silent_seconds.
  -r RETRIES  Stop after this many starts in a row without a new checkpoint (3).

Each process logs to WORKDIR/logs/attempt-K/process-I.log; the terminal shows
process 0. After status 75 (preempted), as many processes start again. If a
signal killed a process, the largest power of two that is not above the number
of survivors starts again. After 69 (another process is missing or stuck), as
many start again if none died. After 2 (refused), 130 (a process itself got
Ctrl-C) and other faults, the launcher ends. It passes SIGTERM and SIGINT on:
the run saves and ends with 75; a second signal kills it. PYTHON is the
interpreter (python).
USAGE
  exit 2
}

exec 3>&2
say() { echo "local.sh: $*" >&3; }
refuse() {
  say "$*"
  exit 2
}
# Called before any arithmetic. There the shell would run the command in a text
# like a[$(command)], and read 010 as eight.
check_whole() {
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] ||
    refuse "$(printf '%s %q: give a whole number above 0.' "$1" "$2")"
}

processes='' devices='' limit=300 retries=3
while getopts n:d:w:r: flag; do
  case $flag in
    n) processes=$OPTARG ;;
    d) devices=$OPTARG ;;
    w) limit=$OPTARG ;;
    r) retries=$OPTARG ;;
    *) usage ;;
  esac
  check_whole "-$flag" "$OPTARG"
done
shift $((OPTIND - 1))
[[ -n $processes && $# -gt 0 ]] || usage

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
[[ -n $workdir ]] || refuse "Give --workdir=FOLDER after the --."
# Like the trainer, expand ~: the shell does not expand it after a =.
[[ $workdir != \~/* ]] || workdir=$HOME/${workdir:2}
[[ $workdir != *://* ]] ||
  refuse "--workdir=$workdir: one machine trains on a local folder."
[[ $workdir != -* ]] || workdir=./$workdir # It is not a flag.

gpus=()
if [[ ${JAX_PLATFORMS:-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
    [[ ${gpus[0]:-} != -1 ]] || gpus=() # CUDA's way to say none.
  elif command -v nvidia-smi >/dev/null; then
    # Without a GPU or its driver, it prints a message instead of numbers.
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader |
      grep -x '[0-9]*')
  fi
fi
if ((${#gpus[@]})); then
  : "${devices:=${#gpus[@]}}"
  ((devices <= ${#gpus[@]})) ||
    refuse "-d $devices: there are ${#gpus[@]} GPUs."
fi
: "${devices:=$processes}"
((devices % processes == 0)) ||
  refuse "-d $devices does not divide among -n $processes processes."

# Finds a port on which nobody listens, below those that clients get from the
# system.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Prints the step of the last whole checkpoint; -1 if there is none.
last_step() {
  local path name last=-1
  for path in "$workdir"/checkpoints/*/; do
    name=${path%/}
    name=${name##*/}
    [[ $name =~ ^(0|[1-9][0-9]{0,17})$ ]] && ((name > last)) && last=$name
  done
  echo "$last"
}

pids=() statuses=() killed=()
stopping=0

pass_on() {
  local signal=TERM i
  ((stopping > 1)) && signal=KILL
  ((${#pids[@]})) || return
  for i in "${!pids[@]}"; do
    [[ -z ${statuses[i]} ]] || continue
    # A process that has just started may not lead its session yet.
    kill -s $signal -- "-${pids[i]}" 2>/dev/null ||
      kill -s $signal "${pids[i]}" 2>/dev/null
  done
}
trap '((stopping++)); pass_on' TERM INT HUP

# Starts $processes processes that log to the folder $logs.
start() {
  local port i share=$((devices / processes)) environment
  port=$(free_port)
  # The secret of the run. It is not on a command line, which all users can see.
  MLIR_JAX_SECRET=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
  export MLIR_JAX_SECRET
  unset MLIR_JAX_SECRET_FILE
  : >"$logs/process-0.log" # tail may start before the process opens it.
  pids=() statuses=() killed=()
  for ((i = 0; i < processes; i++)); do
    if ((${#gpus[@]})); then
      environment=CUDA_VISIBLE_DEVICES=$(
        IFS=,
        echo "${gpus[*]:i*share:share}"
      )
    else
      environment=JAX_NUM_CPU_DEVICES=$share
    fi
    # Each process leads its own session. So only this script gets the Ctrl-C of
    # the terminal, and a kill reaches the children of the process.
    env "$environment" setsid "${PYTHON:-python}" -m mlir_jax.train \
      --distributed "--coordinator=127.0.0.1:$port" \
      "--processes=$processes" "--process=$i" "${arguments[@]}" \
      >"$logs/process-$i.log" 2>&1 3>&- </dev/null &
    pids[i]=$! statuses[i]='' killed[i]=''
  done
}

# Waits until all processes have ended. It kills the others $limit seconds after
# the first has ended, or after all were asked to stop.
finish() {
  local i running deadline='' asked=0
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
      # Its children, which are in its session.
      kill -KILL -- "-${pids[i]}" 2>/dev/null
      : "${deadline:=$((SECONDS + limit))}"
    done
    ((${#running[@]})) || return
    if ((stopping > asked)); then
      asked=$stopping
      deadline=$((SECONDS + limit))
    fi
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      for i in "${running[@]}"; do
        [[ -n ${killed[i]} ]] && continue
        killed[i]=yes
        say "Killing process $i (pid ${pids[i]}), $limit s after the others."
        kill -KILL -- "-${pids[i]}" 2>/dev/null
      done
    fi
    sleep 0.2
  done
}

new_log_folder() {
  local number=1
  mkdir -p "$workdir/logs" || refuse "Cannot write to $workdir/logs."
  while logs=$workdir/logs/attempt-$number && [[ -e $logs || -L $logs ]]; do
    ((number++))
  done
  mkdir "$logs" || refuse "Cannot write to $workdir/logs."
}

stalled=0 before=$(last_step)
while :; do
  new_log_folder
  say "$processes processes, $devices devices; logs in $logs."
  start
  ((stopping)) && pass_on # A signal came while they were started.
  tail -n +1 -f -s 0.2 --pid="${pids[0]}" "$logs/process-0.log" &
  shown=$!
  finish 2>/dev/null # Bash prints the processes that were killed there.
  wait "$shown"

  dead=0 faults=0 missing=0 preempted=0 refused=0 interrupted=0 fault=1
  for i in "${!statuses[@]}"; do
    status=${statuses[i]}
    case $status in
      0) continue ;;
      2) ((refused++)) ;;
      69) ((missing++)) ;;
      75) ((preempted++)) ;;
      130) ((interrupted++)) ;;
      *)
        # SIGABRT comes from the program itself: it is a fault.
        if ((status > 128 && status != 128 + 6)); then
          ((dead++))
          why="by signal $((status - 128))"
          [[ -n ${killed[i]} ]] && why="by this launcher, because it hung"
          say "Process $i was killed $why."
          continue
        fi
        ((faults++))
        fault=$status
        ;;
    esac
    say "Process $i ended with status $status."
  done

  if ((refused)); then
    say "Refused (status 2), not retried: mend what the log names."
    exit 2
  fi
  ((dead + faults + missing + preempted + interrupted)) || exit 0
  if ((stopping)); then
    say "Asked to stop; the same command goes on from the last checkpoint."
    exit 75
  fi
  if ((interrupted)); then
    say "Interrupted (status 130), not retried; the same command goes on."
    exit 130
  fi
  if ((faults && !dead && !missing)); then
    say "A fault (status $fault), not retried; see $logs."
    exit "$fault"
  fi

  # If a process died, it caused the faults of the others.
  lost=$((dead ? dead : faults))
  if ((dead)); then reason="$dead died"; else reason="$faults failed"; fi
  survivors=$((processes - lost))
  if ((lost)); then
    number=1
    while ((number * 2 <= survivors)); do ((number *= 2)); done
    while ((devices % number)); do ((number /= 2)); done
    reason+=" of $processes: going on with $number"
    processes=$number
  elif ((missing)); then
    reason="others were missing (status 69): starting the same $processes again"
  else
    reason="preempted (status 75): starting the same $processes again"
  fi

  now=$(last_step)
  if ((now > before)); then stalled=0; else ((stalled++)); fi
  before=$now
  if ((stalled >= retries)); then
    say "$stalled starts in a row brought no new checkpoint; see $logs."
    exit $((missing || dead ? 69 : 75))
  fi
  if ((now < 0)); then
    say "$reason, from the beginning."
  else
    say "$reason, from the checkpoint of step $now."
  fi
  ((stopping)) && exit 75
done
