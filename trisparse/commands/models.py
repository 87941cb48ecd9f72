"""The command `trisparse models`."""

from __future__ import annotations

from trisparse.commands.options import Debug, errors


def models(debug: Debug = False) -> None:
    """List the pretrained networks with what they are for and how well they do it."""
    with errors(debug):
        from trisparse import zoo

        names = zoo.list_pretrained()
        if not names:
            print("no pretrained networks are installed")
        for name in names:
            card = zoo.load_pretrained(name).card
            size = zoo.weights_file(name).stat().st_size / 1e6
            print(f"{name}  ({size:.2f} MB)\n  {card.description}")
            arguments = ", ".join(f"{key}={value}" for key, value in getattr(card, "arguments", {}).items())
            print(f"  network   {card.architecture}" + (f"({arguments})" if arguments else ""))
            if hasattr(card, "class_names"):
                print(f"  classes   {', '.join(card.class_names)}")
            if hasattr(card, "max_tokens"):
                limit = "" if card.max_tokens is None else f", texts of up to {card.max_tokens} tokens"
                print(f"  output    {card.dimensions} numbers{limit}")
            if hasattr(card, "voxel_size"):
                print(f"  voxels    {card.voxel_size:g} m")
            if hasattr(card, "num_segments"):
                clip = f", clips of {card.num_segments}" if card.num_segments > 1 else ""
                print(f"  frames    {card.size} x {card.size}{clip}")
            if "accuracy" in card.results:
                found = card.results["accuracy"]
                found = found if isinstance(found, dict) else {"": found}  # of several networks
                print(
                    f"  held out  accuracy {', '.join(f'{name} {value:.3f}'.strip() for name, value in found.items())}"
                )
            if "mean_iou" in card.results:
                sweeps = card.results.get("sweeps", "unknown")
                print(f"  held out  mean IoU {card.results['mean_iou']:.3f}, sweeps: {sweeps}")
