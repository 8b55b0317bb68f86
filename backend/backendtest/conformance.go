package backendtest

import (
	"slices"
	"testing"
)

// RunConformance checks every obligation that the interfaces of package
// daytona state, one subtest a subject.
func RunConformance(t *testing.T, h *Harness) { runChecks(t, h, conformanceChecks()) }

func conformanceChecks() []check {
	return slices.Concat(lifecycleChecks(), inputChecks(), registryChecks(), fileChecks(), processChecks(), sessionChecks(), toolboxChecks(), capabilityChecks())
}
