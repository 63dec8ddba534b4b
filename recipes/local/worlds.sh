# Sourced by run_worlds.sh: the table of worlds, and what they share.
# shellcheck shell=bash disable=SC2154 # variables of the script that sources this

# shellcheck disable=SC2034 # run_worlds.sh reads what it sets
# read_worlds FILE NAMES: sets chosen, indices of the worlds of the list NAMES or of all, and arrays with one entry a line
# of the table: world_name, world_lalm (1 or 2), for chosen worlds world_targets and world_sources (directories), and
# world_answers and world_models: the first world of the table with the same targets and LALM, and with the same sources,
# below whose name answers and source models lie, whichever worlds are chosen.
read_worlds() {
  local file=$1 line=0 number=0 name targets sources lalm rest other place
  local written_targets=() written_sources=()
  world_name=() world_lalm=() world_targets=() world_sources=() world_answers=() world_models=() chosen=()
  distinct --names "$2"
  [ -f "$file" ] || usage_error "--table $file: no such file"
  while IFS=$'\t' read -r name targets sources lalm rest || [ -n "$name" ]; do
    line=$((line + 1)) lalm=${lalm%$'\r'}
    case $name in ''|$'\r'|'#'*) continue ;; esac
    [ -n "$lalm" ] && [ -z "$rest" ] ||
      usage_error "--table $file, line $line: expected four columns between tabs: name, targets, sources, LALM"
    [[ $name =~ ^[A-Za-z0-9._+-]+$ ]] || usage_error "--table $file, line $line: '$name' is no name of a directory"
    [[ " ${world_name[*]-} " != *" $name "* ]] || usage_error "--table $file, line $line: names $name a second time"
    [[ $lalm =~ ^[12]$ ]] || usage_error "--table $file, line $line: LALM $lalm, expected 1 or 2"
    world_name+=("$name") world_lalm+=("$lalm") written_targets+=("$targets") written_sources+=("$sources")
    for ((other = number; other >= 0; other--)); do
      if [ "$targets $lalm" = "${written_targets[other]} ${world_lalm[other]}" ]; then
        world_answers[number]=${world_name[other]}
      fi
      if [ "$sources" = "${written_sources[other]}" ]; then world_models[number]=${world_name[other]}; fi
    done
    if [ -z "$2" ] || [[ " $2 " == *" $name "* ]]; then
      place_of "$targets" "$name"
      world_targets[number]=$place
      place_of "$sources" "$name"
      world_sources[number]=$place
      check_transfers "$name" "${world_targets[number]}" "${world_sources[number]}"
      if [ "$lalm" = 2 ] && at_stage 1 && [ -z "$lalm_url2" ]; then
        usage_error "the world $name has another LALM: --lalm-url2 is missing, or leave the world out with --names"
      fi
      chosen+=("$number")
    fi
    number=$((number + 1))
  done < "$file"
  for name in $2; do
    [[ " ${world_name[*]-} " == *" $name "* ]] ||
      usage_error "--names $name: is no world of $file, which has ${world_name[*]-none}"
  done
  [ ${#chosen[@]} -gt 0 ] || usage_error "--table $file: names no world"
}

# place_of DIR WORLD: sets place to the directory that an entry of the table means.
place_of() {
  place=$1
  case $1/ in
    CORPORA/*) [ -n "$corpora" ] || usage_error "the world $2 needs --corpora"; place=$corpora${1#CORPORA} ;;
    WORLDS/*) [ -n "$worlds" ] || usage_error "the world $2 needs --worlds"; place=$worlds${1#WORLDS} ;;
  esac
  [ -d "$place" ] || usage_error "the world $2: $place is no directory"
}

# corpora_below DIR: names of the directories of data in it, one a line.
corpora_below() {
  local file name
  for file in "$1"/*/manifest.csv "$1"/*/metadata.csv; do
    name=$(basename "$(dirname "$file")")
    if [ -f "$file" ] && [[ $name != *-target ]]; then echo "$name"; fi
  done | sort -u
}

with_commas() { corpora_below "$1" | paste -s -d , -; }

check_transfers() {  # WORLD TARGETS SOURCES
  local name source target found=false
  while read -r name; do check_name "$name"; done < <(corpora_below "$2"; corpora_below "$3")
  for source in $(corpora_below "$3"); do for target in $(corpora_below "$2"); do
    if [ "$source" != "$target" ]; then found=true; fi
  done; done
  $found || usage_error "the world $1: there is no source in $3 and target in $2 with different names"
}

# known_answers W CORPUS: starts with what an earlier world of the table asked the same LALM about a corpus of this name.
# A question is known by its audio, so that query-lalm then asks only about clips that are new in this world.
known_answers() {
  local to=$expdir/lalm/${world_answers[$1]}/$2.h5.journal.sqlite from w
  if [ -e "$to" ]; then return; fi
  for ((w = 0; w < $1; w++)); do
    from=$expdir/lalm/${world_answers[w]}/$2.h5.journal.sqlite
    if [ "${world_lalm[w]}" != "${world_lalm[$1]}" ]; then continue; fi
    if $dry_run && [ -d "${world_targets[w]-}/$2" ]; then quoted cp "$from" "$to"; return; fi
    # With a log of SQLite beside it, it is not whole: another process writes it, or did until it was killed.
    if [ -e "$from" ] && ! [ -e "$from-wal" ]; then
      if $dry_run; then quoted cp "$from" "$to"; return; fi
      mkdir -p "$(dirname "$to")"
      cp "$from" "$to.tmp"
      mv "$to.tmp" "$to"
      return
    fi
  done
}
