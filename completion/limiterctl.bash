# bash completion for limiterctl; made by `limiterctl completion bash`.
_limiterctl() {
    local cur prev words cword path="" word i
    cur="${COMP_WORDS[COMP_CWORD]}"
    prev="${COMP_WORDS[COMP_CWORD-1]}"
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${COMP_WORDS[i]}"
        case "$path/$word" in
            /status) path="/status" ;;
            /top) path="/top" ;;
            /explain) path="/explain" ;;
            /history) path="/history" ;;
            /reload) path="/reload" ;;
            /limit) path="/limit" ;;
            /release) path="/release" ;;
            /pause) path="/pause" ;;
            /resume) path="/resume" ;;
            /override) path="/override" ;;
            /override/add) path="/override/add" ;;
            /override/list) path="/override/list" ;;
            /override/revoke) path="/override/revoke" ;;
            /request) path="/request" ;;
            /requests) path="/requests" ;;
            /approve) path="/approve" ;;
            /deny) path="/deny" ;;
            /check) path="/check" ;;
            /replay) path="/replay" ;;
            /record) path="/record" ;;
            /demo) path="/demo" ;;
            /install-service) path="/install-service" ;;
            /uninstall-service) path="/uninstall-service" ;;
            /completion) path="/completion" ;;
        esac
    done
    case "$path $prev" in
        "/status --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/status --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/status --watch") COMPREPLY=(); return ;;
        "/top --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/top --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/top --sort") mapfile -t COMPREPLY < <(compgen -W "n p r" -- "$cur"); return ;;
        "/explain --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/explain --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/explain --watch") COMPREPLY=(); return ;;
        "/history --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/history --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/history --interface") mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return ;;
        "/history --kind") COMPREPLY=(); return ;;
        "/history --since") COMPREPLY=(); return ;;
        "/history --until") COMPREPLY=(); return ;;
        "/history --limit") COMPREPLY=(); return ;;
        "/history --head") COMPREPLY=(); return ;;
        "/reload --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/reload --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/limit --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/limit --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/limit --rate") COMPREPLY=(); return ;;
        "/limit --reason") COMPREPLY=(); return ;;
        "/release --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/release --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/release --reason") COMPREPLY=(); return ;;
        "/pause --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/pause --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/pause --reason") COMPREPLY=(); return ;;
        "/resume --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/resume --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/resume --reason") COMPREPLY=(); return ;;
        "/override --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/override --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/override/add --id") COMPREPLY=(); return ;;
        "/override/add --interface") mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return ;;
        "/override/add --host") mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return ;;
        "/override/add --reason") COMPREPLY=(); return ;;
        "/override/add --approved-by") COMPREPLY=(); return ;;
        "/override/add --threshold") COMPREPLY=(); return ;;
        "/override/add --limit") COMPREPLY=(); return ;;
        "/override/add --from") COMPREPLY=(); return ;;
        "/override/add --until") COMPREPLY=(); return ;;
        "/override/add --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/override/add --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/override/list --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/override/list --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/override/revoke --reason") COMPREPLY=(); return ;;
        "/override/revoke --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/override/revoke --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/request --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/request --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/request --interface") mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return ;;
        "/request --rate") COMPREPLY=(); return ;;
        "/request --until") COMPREPLY=(); return ;;
        "/request --reason") COMPREPLY=(); return ;;
        "/requests --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/requests --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/approve --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/approve --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/approve --threshold") COMPREPLY=(); return ;;
        "/approve --limit") COMPREPLY=(); return ;;
        "/approve --until") COMPREPLY=(); return ;;
        "/approve --reason") COMPREPLY=(); return ;;
        "/deny --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/deny --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/deny --reason") COMPREPLY=(); return ;;
        "/check --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/check --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/replay --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/replay --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/replay --compare") COMPREPLY=(); return ;;
        "/replay --plot") COMPREPLY=(); return ;;
        "/replay --from") COMPREPLY=(); return ;;
        "/replay --to") COMPREPLY=(); return ;;
        "/replay --step") COMPREPLY=(); return ;;
        "/replay --query") COMPREPLY=(); return ;;
        "/replay --timeout") COMPREPLY=(); return ;;
        "/record --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/record --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/record --output") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/record --duration") COMPREPLY=(); return ;;
        "/record --interface") mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return ;;
        "/demo --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/demo --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/install-service --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/install-service --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/install-service --root") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/uninstall-service --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/uninstall-service --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/uninstall-service --root") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/completion --config") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        "/completion --socket") compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    esac
    case "$path" in
        "")
            mapfile -t COMPREPLY < <(compgen -W "status top explain history reload limit release pause resume override request requests approve deny check replay record demo install-service uninstall-service completion --help --version" -- "$cur") ;;
        "/status")
            if [[ "$cur" != -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --watch --json" -- "$cur") ;;
        "/top")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --sort --json" -- "$cur") ;;
        "/explain")
            if [[ "$cur" != -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --watch --json" -- "$cur") ;;
        "/history")
            if [[ "$cur" != -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --interface --kind --since --until --limit --verify --head --json" -- "$cur") ;;
        "/reload")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --json" -- "$cur") ;;
        "/limit")
            if [[ "$cur" != -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --rate --reason --force --json" -- "$cur") ;;
        "/release")
            if [[ "$cur" != -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --all --reason --json" -- "$cur") ;;
        "/pause")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --reason --json" -- "$cur") ;;
        "/resume")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --reason --json" -- "$cur") ;;
        "/override")
            mapfile -t COMPREPLY < <(compgen -W "add list revoke --help --config --socket" -- "$cur") ;;
        "/override/add")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --id --interface --host --reason --approved-by --exempt --threshold --limit --from --until --never --json --config --socket" -- "$cur") ;;
        "/override/list")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --json --config --socket" -- "$cur") ;;
        "/override/revoke")
            if [[ "$cur" != -* ]]; then COMPREPLY=(); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --reason --json --config --socket" -- "$cur") ;;
        "/request")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --interface --rate --until --reason --json" -- "$cur") ;;
        "/requests")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --all --json" -- "$cur") ;;
        "/approve")
            if [[ "$cur" != -* ]]; then COMPREPLY=(); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --exempt --threshold --limit --until --never --reason --json" -- "$cur") ;;
        "/deny")
            if [[ "$cur" != -* ]]; then COMPREPLY=(); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --reason --json" -- "$cur") ;;
        "/check")
            if [[ "$cur" != -* ]]; then compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --json" -- "$cur") ;;
        "/replay")
            if [[ "$cur" != -* ]]; then compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --socket --config --compare --plot --from --to --step --query --timeout --json" -- "$cur") ;;
        "/record")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --output --duration --interface --force" -- "$cur") ;;
        "/demo")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --fast --simulate --no-color" -- "$cur") ;;
        "/install-service")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --dry-run --root --purge" -- "$cur") ;;
        "/uninstall-service")
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket --dry-run --root --purge" -- "$cur") ;;
        "/completion")
            if [[ "$cur" != -* ]]; then mapfile -t COMPREPLY < <(compgen -W "bash fish zsh" -- "$cur"); return; fi
            mapfile -t COMPREPLY < <(compgen -W "-h --help --config --socket" -- "$cur") ;;
    esac
}
complete -F _limiterctl limiterctl
