# Sourced: running a command so that what ends this shell ends the command too.
# shellcheck shell=bash

caught=

# attend COMMAND...: its exit status. After a signal the command is ended and waited for; the status, also in $caught,
# is 130 or 143 then.
attend() {
  local _child='' _status=0
  caught=
  trap 'caught=130; end_child' INT
  trap 'caught=143; end_child' TERM HUP
  end_child() { [ -z "$_child" ] || kill -TERM "$_child" 2> /dev/null || :; }
  "$@" &
  _child=$!
  [ -z "$caught" ] || end_child
  wait "$_child" || _status=$?
  while [ -n "$caught" ] && kill -0 "$_child" 2> /dev/null; do wait "$_child" || :; done
  trap - INT TERM HUP
  return "${caught:-$_status}"
}
