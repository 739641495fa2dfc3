# bash completion of portcullisctl; `source <(portcullisctl completion bash)`.
_portcullisctl() {
    local line=${COMP_LINE:0:COMP_POINT} words name
    # COMP_WORDS splits at colons, which addresses have.
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local last=${words[-1]} prefix=""
    [[ $last == *:* && $COMP_WORDBREAKS == *:* ]] && prefix=${last%:*}:
    COMPREPLY=()
    while IFS= read -r name; do
        printf -v name %q "${name#"$prefix"}"
        COMPREPLY+=("$name")
    done < <("${words[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -o default -F _portcullisctl portcullisctl
