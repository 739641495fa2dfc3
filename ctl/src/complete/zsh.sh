#compdef portcullisctl
# zsh completion of portcullisctl; `source <(portcullisctl completion zsh)` after compinit.
_portcullisctl() {
    local -a names
    names=("${(@f)$("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    names=("${(@)names:#}")
    if (( ${#names} )); then compadd -a names; else _files; fi
}
compdef _portcullisctl portcullisctl
