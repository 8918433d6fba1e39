/// mode IR CPUINFO...: for each file with text like /proc/cpuinfo what FP32 costs the graph, and whether its integers
/// could saturate; then the mode for each precision.
#include <cstdio>
#include <fcnopt/openvino_mode.hpp>

int main(int count, char** words) {
    ov::Core core;
    const auto model = core.read_model(std::string(words[1]));
    for (int i = 2; i < count; ++i) {
        std::ifstream cpuinfo(words[i]);
        const auto flags = fcnopt::detail::flags_in(cpuinfo);
        std::printf("%.12e %d\n", fcnopt::detail::fp32_costs(model, fcnopt::detail::macs_a_cycle(flags)),
                    fcnopt::detail::saturates(*model, flags));
    }
    for (const char* precision : {"fp32", "fp16", "bf16", "int8"}) {
        for (const fcnopt::detail::Words& has : {fcnopt::detail::Words{"FP32"}, {"FP32", "BF16"}, {"FP32", "FP16"}}) {
            for (const char* device : {"CPU", "GPU"}) {
                std::string mode;
                try {
                    mode = fcnopt::detail::execution_mode(model, precision, has, device);
                } catch (const fcnopt::Error&) {
                    mode = "refused";
                }
                std::printf("%s\n", mode.c_str());
            }
        }
    }
}
