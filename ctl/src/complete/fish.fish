# fish completion of portcullisctl; `portcullisctl completion fish | source`.
function __portcullisctl_complete
    set -l words (commandline -opc)
    $words[1] __complete -- $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c portcullisctl -f -a '(__portcullisctl_complete)'
