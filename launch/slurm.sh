#!/usr/bin/env bash
# Trains on a SLURM cluster, one task per GPU. Queues itself until it is done.
#
#   sbatch --nodes=4 launch/slurm.sh --config=xlmr_base --workdir=/shared/run
#
# Options of sbatch replace those below. All nodes must see the workdir. Each
# task logs to WORKDIR/logs/slurm-JOB-attempt-K/process-I-NODE.log.
#SBATCH --job-name=mlir_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# The tasks get the signal, not this script. They save and end with 75 in time.
#SBATCH --signal=TERM@300
set -uo pipefail

# After a task has ended, the others are killed when they take longer than this
# (seconds); more than the config's hosts.silent_seconds.
LIMIT=300
# Stop after this many starts in a row without a new checkpoint.
RETRIES=3

say() { echo "slurm.sh: $*" >&2; }
refuse() {
  say "$*"
  exit 2
}

# Called before any arithmetic. There the shell would run the command in a text
# like a[$(command)], and read 010 as eight.
is_whole() { [[ $1 =~ ^(0|[1-9][0-9]{0,17})$ ]]; }
check_whole() {
  is_whole "$2" || refuse "$(printf '%s=%q: not a whole number.' "$1" "$2")"
}

[[ -n ${SLURM_JOB_ID:-} ]] ||
  refuse "Start it with: sbatch launch/slurm.sh --config=... --workdir=..."
check_whole SLURM_JOB_ID "$SLURM_JOB_ID"
check_whole SLURM_RESTART_COUNT "${SLURM_RESTART_COUNT:=0}"
check_whole SLURM_CPUS_PER_TASK "${SLURM_CPUS_PER_TASK:=1}"
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
[[ -n $workdir ]] || refuse "Give --workdir=FOLDER after the script's name."
# Like the trainer, expand ~: the shell does not expand it after a =.
[[ $workdir != \~/* ]] || workdir=$HOME/${workdir:2}
[[ $workdir != *://* ]] || refuse "--workdir=$workdir: give a shared folder."
[[ $workdir != -* ]] || workdir=./$workdir # It is not a flag.
[[ $workdir != *[%\\]* ]] ||
  refuse "--workdir=$workdir: srun reads % and \\ in the name of a log; give" \
    "another folder."
# JAX gives a task the GPU with the task's number on the node. Other GPUs would
# be idle.
tasks=${SLURM_NTASKS_PER_NODE:-1}
check_whole SLURM_NTASKS_PER_NODE "$tasks"
[[ ${SLURM_GPUS_ON_NODE:-$tasks} == "$tasks" ]] ||
  refuse "$SLURM_GPUS_ON_NODE GPUs and $tasks tasks per node: give" \
    "--ntasks-per-node and --gpus-per-node the same number."

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

attempt=$((SLURM_RESTART_COUNT + 1))
mkdir -p "$workdir/logs" || refuse "Cannot write to $workdir/logs."
# A new folder: others may share the workdir, and their files stay as they are.
while logs=$workdir/logs/slurm-$SLURM_JOB_ID-attempt-$attempt &&
  [[ -e $logs || -L $logs ]]; do
  ((attempt++))
done
mkdir "$logs" || refuse "Cannot write to $workdir/logs."
say "Attempt $attempt on $SLURM_JOB_NODELIST; logs in $logs."
before=$(last_step)

# The secret of the run, a new one for each start. It is in the environment, not
# on a command line, which all users can see.
MLIR_JAX_SECRET=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
export MLIR_JAX_SECRET
unset MLIR_JAX_SECRET_FILE

# When a task ends, srun must not end the others: they notice it and name the
# task. srun does not inherit --cpus-per-task.
srun --kill-on-bad-exit=0 --wait="$LIMIT" --export=ALL \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  --output="$logs/process-%t-%N.log" \
  "${PYTHON:-python}" -m mlir_jax.train --distributed "$@" 2>"$logs/srun.log"
status=$?
cat "$logs/srun.log" >&2
((status)) || exit 0

# srun ends with the highest status of all tasks, and prints the others.
if ((status == 2)) || grep -q 'Exited with exit code 2$' "$logs/srun.log"; then
  say "Refused (status 2), not queued again: mend what the logs name."
  exit 2
fi
if grep -q 'Exited with exit code 130$' "$logs/srun.log"; then
  say "Interrupted (status 130), not queued again; the same command goes on."
  exit 130
fi
if ((status == 1)); then
  say "A fault (status 1), not queued again; see $logs."
  exit 1
fi

# The number of earlier starts without progress is in a file next to the logs.
counter=$workdir/logs/slurm-$SLURM_JOB_ID-stalled
stalled=''
[[ -f $counter && ! -L $counter ]] && read -r -N 20 stalled <"$counter"
stalled=${stalled%$'\n'}
is_whole "$stalled" || stalled=0
now=$(last_step)
if ((now > before)); then stalled=0; else ((stalled++)); fi
# Writes a file aside and renames it: this follows no link.
write() {
  local aside
  aside=$(mktemp "$workdir/logs/.stalled.XXXXXXXXXX") &&
    echo "$2" >"$aside" && mv -fT -- "$aside" "$1"
}
write "$counter" "$stalled" || refuse "Cannot write to $workdir/logs."
if ((stalled >= RETRIES)); then
  say "$stalled starts in a row brought no new checkpoint; see $logs."
  exit "$status"
fi
say "Status $status at the checkpoint of step $now: queued again."
scontrol requeue "$SLURM_JOB_ID"
