"""`pyflash completion`: what makes a shell complete this command.

For each word the shell runs `pyflash` with _PYFLASH_COMPLETE=<shell>_complete and what has been typed in COMP_WORDS and
COMP_CWORD, and click answers with lines of kind and value. The kinds "file", "dir" and "gguf" leave it to the shell to
look for files, because it knows about quotes, tildes and slashes.
"""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from pyflash.cli.paths import FilePath
from pyflash.machine.models import model_path

_GGUF = "gguf"

_BASH = """\
_pyflash_complete() {
    local line kind value word current=-1 i
    local -a words=()
    COMPREPLY=()
    for ((i = 0; i <= COMP_CWORD; i++)); do  # bash takes --option=value for three words
        word=${COMP_WORDS[i]}
        if [[ $word == = || ( $i -gt 0 && ${COMP_WORDS[i-1]} == = ) ]] && ((current > 0)); then
            words[current]+=$word
        else
            words[++current]=$word
        fi
    done
    while IFS= read -r line; do
        kind=${line%%,*}
        value=${line#*,}
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            gguf)
                compopt -o filenames 2>/dev/null
                while IFS= read -r line; do COMPREPLY+=("$line"); done \\
                    < <(compgen -d -- "$value"; compgen -f -X '!*.gguf' -- "$value") ;;
            dir)
                compopt -o filenames 2>/dev/null
                while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -d -- "$value") ;;
            file)
                compopt -o filenames 2>/dev/null
                while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$value") ;;
        esac
    done < <(COMP_WORDS="${words[*]}" COMP_CWORD=$current _PYFLASH_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -F _pyflash_complete pyflash
"""

_ZSH = """\
#compdef pyflash
_pyflash() {
    local -a answer plain described
    local kind value help
    answer=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) _PYFLASH_COMPLETE=zsh_complete \\
        $words[1] 2>/dev/null)}")
    for kind value help in "${answer[@]}"; do
        case $kind in
            plain) if [[ $help == _ ]]; then plain+=("$value"); else described+=("${value//:/\\\\:}:$help"); fi ;;
            gguf) _files -g '*.gguf' ;;
            dir) _files -/ ;;
            file) _files ;;
        esac
    done
    (( $#described )) && _describe -V pyflash described
    (( $#plain )) && compadd -V pyflash -a plain
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _pyflash "$@"
else
    compdef _pyflash pyflash
fi
"""

_FISH = """\
function _pyflash_complete
    set -lx COMP_WORDS (commandline -cp)
    set -lx COMP_CWORD (commandline -t)
    set -lx _PYFLASH_COMPLETE fish_complete
    for line in (pyflash 2>/dev/null)
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case plain
                echo $parts[2]
            case gguf
                __fish_complete_suffix .gguf
            case dir
                __fish_complete_directories $COMP_CWORD
            case file
                __fish_complete_path $COMP_CWORD
        end
    end
end
complete --no-files --command pyflash --arguments '(_pyflash_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


class GGUFFile(FilePath):
    """A parameter that names a GGUF file, by its path or by its name in a local store: completes to such files, and to
    folders that may hold some.

    Whether it is there and can be read is left to who opens it: that is no matter of usage.
    """

    def __init__(self) -> None:
        super().__init__(readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        given = super().convert(value, param, ctx)
        return model_path(given) if isinstance(given, str) else given

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type=_GGUF)]


@click.command()
@click.argument("shell", type=click.Choice(list(_SCRIPTS)))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and *.gguf files.

    \b
    Try it in the running shell:
      bash:  source <(pyflash completion bash)
      zsh:   source <(pyflash completion zsh)
      fish:  pyflash completion fish | source

    \b
    Install it for new shells:
      bash:  pyflash completion bash > ~/.local/share/bash-completion/completions/pyflash
      zsh:   pyflash completion zsh > "${fpath[1]}/_pyflash"
      fish:  pyflash completion fish > ~/.config/fish/completions/pyflash.fish
    """
    click.echo(_SCRIPTS[shell], nl=False)
