// A C ABI around a simulated unit: many sums, each of `steps` clock cycles. The generated design is included in front.
//
// Operands and results are arrays of 32-bit chunks, least significant first, a case after the other. An operand port
// has a value per case and cycle; c one per case; y one per case, read after the last cycle.
#include <cstddef>
#include <cstdint>

namespace {

template <size_t Bits> void put(cxxrtl::value<Bits> &port, const uint32_t *&from) {
  for (size_t i = 0; i < cxxrtl::value<Bits>::chunks; i++) port.data[i] = *from++;
}

template <size_t Bits> void get(const cxxrtl::value<Bits> &port, uint32_t *&to) {
  for (size_t i = 0; i < cxxrtl::value<Bits>::chunks; i++) *to++ = port.data[i];
}

template <size_t Bits> void get(const cxxrtl::wire<Bits> &port, uint32_t *&to) { get(port.curr, to); }

}  // namespace

extern "C" void run(uint64_t cases, uint64_t steps, OPERANDS const uint32_t *c, uint32_t *y) {
  cxxrtl_design::p_top top;
  for (uint64_t i = 0; i < cases; i++) {
    START
    for (uint64_t k = 0; k < steps; k++) {
      top.p_start.set<bool>(k == 0);
      FEED
      top.p_clk.set<bool>(false);
      top.step();
      top.p_clk.set<bool>(true);
      top.step();
    }
    top.step();  // what follows from the register's last value
    get(top.p_y, y);
  }
  (void)c;
}
