"""Operations that every paper shares: capture, ablation, head scores, choice scoring, statistics."""
