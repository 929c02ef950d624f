// A mixture of experts as ops of a plan: route, gather, two matrices of every chosen expert, combine.
#pragma once
#include "plan.h"

namespace puna {

struct ExpertWeights {
  std::vector<Weight> w1, w2, w3;  // one of each per expert
  int x_forms, h_forms;            // in which w1 and w3, and w2 want activations
};

// A slot is a token at one of its experts; slots of one expert are neighbours. Buffers of slots, shared by all layers.
struct SlotBuffers {
  Buffer& x;   // scaled inputs, later the results
  Buffer& h;   // gates, later the hidden values
  Buffer& up;  // h itself where gates and ups are of one kind and multiplied together
};

// Appends the ops that fill out [rows, D] from x [rows, D] and the router's scores [rows, E]. Every matrix of a chosen
// expert is read once a step, however many tokens are sent to it. A row depends on itself only: its experts are added up
// in the order of their numbers.
void add_experts(std::vector<std::unique_ptr<Op>>& ops, const Kernels& k, const Buffer& x, const Buffer& scores, ExpertWeights weights,
                 int n_active, const SlotBuffers& slots, const Buffer& out);

}  // namespace puna
