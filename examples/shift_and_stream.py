"""A network of single frames learns to look back: temporal shift, then the same network live, frame by frame."""

import torch

import video


def main() -> None:
    torch.manual_seed(0)
    model = video.models.ResNet(18, num_classes=10)  # any 2D network with residual blocks
    video.add_temporal_shift(model, num_segments=8, direction="past")
    model.eval()
    print(model.insertion)

    clip = torch.rand(8, 3, 64, 64)  # 8 frames in order
    with torch.inference_mode():
        offline = model(clip)

    # Two cameras, one network. What a camera remembers lies in `state` alone, which can be cloned and saved.
    stream, state, answers = video.Stream(model), None, []
    for frame in clip:
        output, state = stream.step(torch.stack([frame, frame.flip(-1)]), state)
        answers.append(output[0])
    difference = (torch.stack(answers) - offline).abs().max()
    print(f"live and offline differ by {difference:.1e} at most")

    faster = video.accelerate(model, dtype="auto", example=clip)
    print(video.compare(model, faster, clip))


if __name__ == "__main__":
    main()
