# shellcheck shell=bash
# Completion for bash: the options of tcpparser and their values, as its own
# --help lists them.

_tcpparser() {
    local word=$2 before=$3 line token names='' takes='' values=''
    # `--option=value` comes as three words.
    [[ $word != '=' ]] || word=''
    [[ $before != '=' ]] || before=${COMP_WORDS[COMP_CWORD - 2]}
    local option='^ +(-.)?,? *(--[a-z-]+) ([A-Z:]*) *(.*)$'
    while IFS= read -r line; do
        [[ $line =~ $option ]] || continue
        names+=" ${BASH_REMATCH[2]}"
        [[ $before != "${BASH_REMATCH[1]}" && $before != "${BASH_REMATCH[2]}" ]] || {
            takes=${BASH_REMATCH[3]}
            line=${BASH_REMATCH[4]}
            # Behind the last colon: auto/none [auto], 2..256/none, ADDR or all.
            for token in ${line##*: }; do
                case $token in
                    *..*/*) values+=" ${token#*/}" ;;
                    *[!a-z/]*) ;;
                    */*) values+=" ${token//\// }" ;;
                    all | none) values+=" $token" ;;
                esac
            done
        }
    done < <("$1" --help 2>/dev/null)
    case $takes in
        '') mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word") ;;
        DIR | FILE)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$values" -- "$word") ;;
    esac
}
complete -F _tcpparser tcpparser
