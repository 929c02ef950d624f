// Measures what the machine can do at best.
#pragma once
#include <cstddef>
#include <string>

namespace puna {

double read_gb_s(int threads, size_t bytes, double seconds);          // all threads stream one buffer; 1e9 bytes per second
double int8_tops(const std::string& target, int threads, double seconds);   // 1e12 operations, a multiply-accumulate being two
double bf16_tflops(const std::string& target, int threads, double seconds);

}  // namespace puna
