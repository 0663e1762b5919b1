/* The variants of the laboratory, held to their reference, and their rates: see bench/lab/attention.cu. */
#include "../../bench/lab/attention.cu"
