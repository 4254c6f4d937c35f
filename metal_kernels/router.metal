// The routing of one token by one simdgroup: top-k, softmax over it, the shared expert's gate. router.py has the
// definition and the launch.

// No variable: one in `constant` memory may not meet a thread's own in one conditional.
enum : uint { NO_EXPERT = 0xffffffff };

// logits: [rows, W], experts first, then the shared expert's gate.   chosen, weights: [rows, P].
// E experts, K of them chosen. A lane looks after experts lane, lane + 32, ...
template <typename T, int E, int K, int W, int P>
METAL_FUNC void route(
    const device T* logits, device uint* chosen, device float* weights, uint row, uint lane) {
  constexpr int PER = (E + 31) / 32;
  logits += size_t(row) * W;
  chosen += size_t(row) * P;
  weights += size_t(row) * P;
  float held[PER];
  bool broken = false;
#pragma clang loop unroll(full)
  for (int p = 0; p < PER; p++) {
    const uint expert = p * 32 + lane;
    held[p] = expert < uint(E) ? float(logits[expert]) : -INFINITY;
    broken |= metal::isnan(held[p]);
    // Nothing compares with NaN; as the smallest it leaves the choice valid, and the weights tell.
    held[p] = metal::isnan(held[p]) ? -INFINITY : held[p];
  }
  broken = simd_any(broken);

  uint taken = 0;  // bit p: expert p * 32 + lane has been chosen
  float largest = 0, total = 0, mine = 0;
  uint my_expert = 0;
  for (int k = 0; k < K; k++) {
    float best = -INFINITY;
    uint who = NO_EXPERT;
#pragma clang loop unroll(full)
    for (int p = 0; p < PER; p++) {
      const uint expert = p * 32 + lane;
      // A lane's experts are in rising order: of equals, the first stays.
      if (expert < uint(E) && !(taken >> p & 1) && (who == NO_EXPERT || held[p] > best)) {
        best = held[p];
        who = expert;
      }
    }
    const float top = simd_max(best);
    // Of equals, the lowest index: bfloat16 logits are equal often.
    const uint winner = simd_min(best == top ? who : NO_EXPERT);
    if (winner % 32 == lane) {
      taken |= 1u << (winner / 32);
    }
    largest = k == 0 ? top : largest;
    // The sum over all experts cancels when the chosen are renormalised.
    const float weight = metal::precise::exp(top - largest);
    total += weight;
    if (uint(k) == lane) {
      my_expert = winner;
      mine = weight;
    }
  }
  mine = broken ? NAN : mine / total;
  if (lane == uint(K)) {
    mine = 1 / (1 + metal::precise::exp(-float(logits[E])));
  }
  if (lane < uint(P)) {
    chosen[lane] = lane < uint(K) ? my_expert : 0;
    weights[lane] = lane <= uint(K) ? mine : 0;
  }
}
