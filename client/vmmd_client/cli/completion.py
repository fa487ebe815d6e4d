"""`vmmctl completion`: what makes a shell complete commands, options, and the ids of VMs."""

import click
from click.shell_completion import get_completion_class

# click's sign for "wrap nothing" stands in front.
_WHERE = """\b
bash:  eval "$(vmmctl completion bash)"      in ~/.bashrc
zsh:   eval "$(vmmctl completion zsh)"       in ~/.zshrc
fish:  vmmctl completion fish > ~/.config/fish/completions/vmmctl.fish
"""


@click.command(epilog=_WHERE)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Write the script that completes vmmctl in a shell: commands, options, and the ids of VMs."""
    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(context.find_root().command, {}, "vmmctl", "_VMMCTL_COMPLETE").source())
