"""Operations that exist in several forms: compiled C, Triton, torch; and how one is chosen."""
