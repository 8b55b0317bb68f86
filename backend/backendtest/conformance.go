package backendtest

import (
	"slices"
	"testing"
)

// RunConformance checks every obligation that the interfaces of package
// daytona state, one subtest a subject.
func RunConformance(t *testing.T, h *Harness) {
	for _, c := range capabilities {
		why, lacks := h.Lacks[c]
		tell(t, string(c), !lacks, why)
	}
	runChecks(t, h, "conformance", conformanceChecks())
}

func conformanceChecks() []check {
	return slices.Concat(lifecycleChecks(), inputChecks(), registryChecks(), fileChecks(), processChecks(), sessionChecks(), toolboxChecks(), capabilityChecks())
}
