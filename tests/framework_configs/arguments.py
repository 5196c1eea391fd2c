import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--num-layers", type=int, default=6)
parser.add_argument("--width", type=int, default=512)
parser.add_argument("--ffn-dim", type=int, default=2048)
parser.add_argument("--lr", type=float, default=3e-4, help="peak")
parser.add_argument("--tokens-per-batch", type=int, default=2**18)
parser.add_argument("--seq-len", type=int, default=1024)
parser.add_argument("--steps", type=int, default=10_000)
parser.add_argument("--optimizer", default="adamw")
args = parser.parse_args()
