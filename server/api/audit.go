package api

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/audit"
	"github.com/daytona-go/daytona/server/identity"
)

// audited is what the audit log says of a route.
type audited struct {
	action, target string
	// id is the parameter of the path that names the target; what is made has
	// none, and is named by its handler with [Note].
	id string
}

// auditedRoutes are those that are written to the audit log: all that change
// something for a user. A route that is not here is one of those in notAudited.
var auditedRoutes = map[string]audited{
	"createApiKey":        {"create", "api_key", ""},
	"deleteApiKey":        {"delete", "api_key", "name"},
	"deleteApiKeyForUser": {"delete", "api_key", "name"},

	"createOrganization":                       {"create", "organization", ""},
	"deleteOrganization":                       {"delete", "organization", "organizationId"},
	"setOrganizationDefaultRegion":             {"update", "organization", "organizationId"},
	"updateExperimentalConfig":                 {"update", "organization", "organizationId"},
	"updateOrganizationQuota":                  {"update_quota", "organization", "organizationId"},
	"updateOrganizationRegionQuota":            {"update_region_quota", "organization", "organizationId"},
	"suspendOrganization":                      {"suspend", "organization", "organizationId"},
	"unsuspendOrganization":                    {"unsuspend", "organization", "organizationId"},
	"updateOrganizationOtelConfig":             {"update_otel_config", "organization", "organizationId"},
	"deleteOrganizationOtelConfig":             {"delete_otel_config", "organization", "organizationId"},
	"updateSandboxDefaultLimitedNetworkEgress": {"update_sandbox_default_limited_network_egress", "organization", "organizationId"},
	"updateOrganizationPreviewWarning":         {"update_preview_warning", "organization", "organizationId"},
	"updateOrganizationSsoEnabled":             {"update_sso_enabled", "organization", "organizationId"},
	"leaveOrganization":                        {"leave_organization", "", ""},
	"acceptOrganizationInvitation":             {"accept", "organization_invitation", "invitationId"},
	"declineOrganizationInvitation":            {"decline", "organization_invitation", "invitationId"},
	"createOrganizationInvitation":             {"create", "organization_invitation", ""},
	"updateOrganizationInvitation":             {"update", "organization_invitation", "invitationId"},
	"cancelOrganizationInvitation":             {"delete", "organization_invitation", "invitationId"},
	"createOrganizationRole":                   {"create", "organization_role", ""},
	"updateOrganizationRole":                   {"update", "organization_role", "roleId"},
	"deleteOrganizationRole":                   {"delete", "organization_role", "roleId"},
	"updateAccessForOrganizationMember":        {"update_access", "organization_user", "userId"},
	"deleteOrganizationMember":                 {"delete", "organization_user", "userId"},
	"createOrganizationIdentityProvider":       {"create", "identity_provider", ""},
	"updateOrganizationIdentityProvider":       {"update", "identity_provider", "id"},
	"deleteOrganizationIdentityProvider":       {"delete", "identity_provider", "id"},

	"createRegion":                         {"create", "region", ""},
	"updateRegion":                         {"update", "region", "id"},
	"deleteRegion":                         {"delete", "region", "id"},
	"regenerateProxyApiKey":                {"regenerate_proxy_api_key", "region", "id"},
	"regenerateSshGatewayApiKey":           {"regenerate_ssh_gateway_api_key", "region", "id"},
	"regenerateSnapshotManagerCredentials": {"regenerate_snapshot_manager_credentials", "region", "id"},

	"linkAccount":            {"link_account", "user", ""},
	"unlinkAccount":          {"unlink_account", "user", "providerUserId"},
	"enrollInSmsMfa":         {"update", "user", ""},
	"confirmPendingSsoLink":  {"link_account", "user", "id"},
	"dismissPendingSsoLink":  {"unlink_account", "user", "id"},
	"adminCreateUser":        {"create", "user", ""},
	"adminRegenerateKeyPair": {"regenerate_key_pair", "user", "id"},

	"createSandbox":              {"create", "sandbox", ""},
	"deleteSandbox":              {"delete", "sandbox", "sandboxIdOrName"},
	"recoverSandbox":             {"recover", "sandbox", "sandboxIdOrName"},
	"adminRecoverSandbox":        {"recover", "sandbox", "sandboxId"},
	"startSandbox":               {"start", "sandbox", "sandboxIdOrName"},
	"stopSandbox":                {"stop", "sandbox", "sandboxIdOrName"},
	"pauseSandbox":               {"pause", "sandbox", "sandboxIdOrName"},
	"resizeSandbox":              {"resize", "sandbox", "sandboxIdOrName"},
	"replaceLabels":              {"replace_labels", "sandbox", "sandboxIdOrName"},
	"createBackup":               {"create_backup", "sandbox", "sandboxIdOrName"},
	"createSandboxSnapshot":      {"snapshot", "sandbox", "sandboxIdOrName"},
	"forkSandbox":                {"fork", "sandbox", "sandboxIdOrName"},
	"updatePublicStatus":         {"update_public_status", "sandbox", "sandboxIdOrName"},
	"rotateSigningKey":           {"rotate_signing_key", "sandbox", "sandboxId"},
	"setAutostopInterval":        {"set_auto_stop_interval", "sandbox", "sandboxIdOrName"},
	"setAutoPauseInterval":       {"set_auto_pause_interval", "sandbox", "sandboxIdOrName"},
	"setTtl":                     {"set_ttl", "sandbox", "sandboxIdOrName"},
	"setAutoArchiveInterval":     {"set_auto_archive_interval", "sandbox", "sandboxIdOrName"},
	"setAutoDeleteInterval":      {"set_auto_delete_interval", "sandbox", "sandboxIdOrName"},
	"updateNetworkSettings":      {"update_network_settings", "sandbox", "sandboxIdOrName"},
	"updateSandboxSecrets":       {"update_secrets", "sandbox", "sandboxIdOrName"},
	"archiveSandbox":             {"archive", "sandbox", "sandboxIdOrName"},
	"getPortPreviewUrl":          {"get_port_preview_url", "sandbox", "sandboxIdOrName"},
	"getSignedPortPreviewUrl":    {"get_port_preview_url", "sandbox", "sandboxIdOrName"},
	"expireSignedPortPreviewUrl": {"update", "sandbox", "sandboxIdOrName"},
	"createSshAccess":            {"create_ssh_access", "sandbox", "sandboxIdOrName"},
	"revokeSshAccess":            {"revoke_ssh_access", "sandbox", "sandboxIdOrName"},

	"createRunner":                {"create", "runner", ""},
	"deleteRunner":                {"delete", "runner", "id"},
	"updateRunnerScheduling":      {"update_scheduling", "runner", "id"},
	"updateRunnerDraining":        {"update_draining", "runner", "id"},
	"adminCreateRunner":           {"create", "runner", ""},
	"adminDeleteRunner":           {"delete", "runner", "id"},
	"adminUpdateRunnerScheduling": {"update_scheduling", "runner", "id"},

	"createSnapshot":                {"create", "snapshot", ""},
	"removeSnapshot":                {"delete", "snapshot", "id"},
	"activateSnapshot":              {"activate", "snapshot", "id"},
	"deactivateSnapshot":            {"deactivate", "snapshot", "id"},
	"adminSetSnapshotGeneralStatus": {"set_general_status", "snapshot", "id"},

	"createVolume":            {"create", "volume", ""},
	"deleteVolume":            {"delete", "volume", "volumeId"},
	"createWarmPool":          {"create", "warm_pool", ""},
	"updateWarmPool":          {"update", "warm_pool", "id"},
	"deleteWarmPool":          {"delete", "warm_pool", "id"},
	"createRegistry":          {"create", "docker_registry", ""},
	"updateRegistry":          {"update", "docker_registry", "id"},
	"deleteRegistry":          {"delete", "docker_registry", "id"},
	"adminSetDefaultRegistry": {"set_default", "docker_registry", "id"},
	"createSecret":            {"create", "secret", ""},
	"updateSecret":            {"update", "secret", "secretId"},
	"deleteSecret":            {"delete", "secret", "secretId"},

	"adminCreateOrganization":               {"create", "organization", ""},
	"adminCreateOrganizationRegionQuota":    {"create_region_quota", "organization", "organizationId"},
	"adminUpdateOrganizationRegionQuota":    {"update_region_quota", "organization", "organizationId"},
	"adminDeleteOrganizationRegionQuota":    {"delete_region_quota", "organization", "organizationId"},
	"adminUpdateOrganizationPreviewWarning": {"update_preview_warning", "organization", "organizationId"},

	"adminSendWebhook":                     {"send_webhook_message", "organization", "organizationId"},
	"adminInitializeWebhooks":              {"initialize_webhooks", "organization", "organizationId"},
	"WebhookController_initializeWebhooks": {"initialize_webhooks", "organization", "organizationId"},
	"createWebhookEndpoint":                {"create", "", ""},
	"updateWebhookEndpoint":                {"update", "", "endpointId"},
	"deleteWebhookEndpoint":                {"delete", "", "endpointId"},
	// Whoever has read it can sign in the server's name.
	"getWebhookEndpointSecret": {"read", "", "endpointId"},
}

// notAudited are the other routes that are no GET: they change nothing that
// lasts, or are of the system's own services.
var notAudited = []string{
	"updateSandboxState", "updateLastActivity", "runnerHealthcheck", "updateJobStatus", "testOrganizationIdentityProviderConnection",
	"WebhookController_getAppPortalAccess", "WebhookController_refreshEndpoints",
}

// NotAudited returns the ids of the routes that are no GET and that the audit
// log does not have.
func NotAudited() []string { return slices.Clone(notAudited) }

// systemEvents are what the system does to sandboxes by itself.
var systemEvents = []string{"auto_stop", "auto_archive", "auto_delete", "ttl_expire"}

// Audit returns what the audit log is to say of a request; ok is false if that
// is nothing.
func Audit(e Entry) (v audit.Entry, ok bool) {
	a, ok := auditedRoutes[e.Route.ID]
	if !ok && e.Route.Tag == "toolbox" && e.Route.Method != http.MethodGet {
		a, ok = audited{"toolbox_" + snake(strings.TrimSuffix(e.Route.ID, "_deprecated")), "sandbox", "sandboxId"}, true
	}
	if !ok || e.Principal == nil || e.Principal.Kind&identity.User == 0 {
		return audit.Entry{}, false
	}
	v = audit.Entry{
		OrganizationID: e.Principal.OrganizationID, ActorID: e.Principal.UserID, ActorEmail: e.Principal.Email,
		Action: a.action, TargetType: a.target, TargetID: e.Target, StatusCode: e.Status, UserAgent: e.Agent, Source: e.Source, Metadata: e.Detail,
	}
	if id := e.Params["organizationId"]; id != "" {
		v.OrganizationID = id
	}
	if v.TargetID == "" {
		v.TargetID = e.Params[a.id]
	}
	if v.TargetType == "organization" && v.OrganizationID == "" {
		v.OrganizationID = v.TargetID
	}
	if e.Address.IsValid() {
		v.IPAddress = e.Address.String()
	}
	if e.Status >= 400 && e.Err != nil {
		v.ErrorMessage = messageOf(e.Err, e.Status)
	}
	return v, true
}

// snake makes snake_case of camelCase.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte('_')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// AuditQuery has the parameters of a query of the audit log. A filter is
// "field[op]=value", as in "action[in]=create,delete", or "field=value" for eq.
type AuditQuery struct {
	Page  int    `query:"page" minimum:"1" default:"1"`
	Limit int    `query:"limit" minimum:"1" maximum:"200" default:"100"`
	From  string `query:"from"`
	To    string `query:"to"`
	Next  string `query:"nextToken"`

	filters []audit.Filter
}

var auditFields = []string{"id", "actorId", "actorEmail", "actorApiKeyPrefix", "actorApiKeySuffix", "action", "targetType", "targetId", "statusCode", "createdAt"}

// Resolve reads the filters, which package huma has no words for.
func (in *AuditQuery) Resolve(ctx huma.Context) []error {
	u := ctx.URL()
	query := u.Query()
	for _, key := range slices.Sorted(maps.Keys(query)) {
		field, op, _ := strings.Cut(strings.TrimSuffix(key, "]"), "[")
		if !slices.Contains(auditFields, field) {
			continue
		}
		f := audit.Filter{Field: field, Op: cmp.Or(op, "eq")}
		values := query[key]
		if f.Op == "in" || f.Op == "notIn" {
			values = strings.Split(strings.Join(values, ","), ",")
		}
		for _, v := range values {
			value, err := auditValue(field, v)
			if err != nil {
				return []error{err}
			}
			f.Values = append(f.Values, value)
		}
		in.filters = append(in.filters, f)
	}
	return nil
}

func auditValue(field, v string) (any, error) {
	switch field {
	case "statusCode":
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Message: "statusCode must be a number"}
		}
		return n, nil
	case "createdAt":
		return timeOf(field, v)
	}
	return v, nil
}

// RegisterAudit serves the audit log.
func RegisterAudit(a *API, s *audit.Service) {
	find := func(ctx context.Context, in *AuditQuery, q audit.Query) (wire.PaginatedAuditLogs, error) {
		q.Page, q.Limit, q.Filters = in.Page, in.Limit, in.filters
		var err error
		if q.From, err = optionalTime("from", &in.From); err != nil {
			return wire.PaginatedAuditLogs{}, err
		}
		if q.To, err = optionalTime("to", &in.To); err != nil {
			return wire.PaginatedAuditLogs{}, err
		}
		all, total, err := s.Find(ctx, q)
		if err != nil {
			return wire.PaginatedAuditLogs{}, err
		}
		w := wire.PaginatedAuditLogs{Items: make([]wire.AuditLog, len(all)), Total: float64(total), Page: float64(in.Page), TotalPages: float64((total + in.Limit - 1) / in.Limit)}
		for i := range all {
			w.Items[i] = auditWire(&all[i])
		}
		return w, nil
	}
	Handle(a, "getOrganizationAuditLogs", func(ctx context.Context, in *struct {
		OrganizationID string `path:"organizationId"`
		AuditQuery
	}) (wire.PaginatedAuditLogs, error) {
		return find(ctx, &in.AuditQuery, audit.Query{OrganizationID: in.OrganizationID})
	})
	Handle(a, "adminGetAllAuditLogs", func(ctx context.Context, in *AuditQuery) (wire.PaginatedAuditLogs, error) {
		return find(ctx, in, audit.Query{Everything: true})
	})
	Handle(a, "getAuditScenarios", func(context.Context, *struct{}) (wire.AuditScenarios, error) { return auditScenarios(), nil })
}

// auditScenarios are all that the audit log can say.
func auditScenarios() wire.AuditScenarios {
	targets := map[string][]string{"sandbox": slices.Clone(systemEvents)}
	for _, r := range auditedRoutes {
		target := cmp.Or(r.target, "other")
		targets[target] = append(targets[target], r.action)
	}
	w := wire.AuditScenarios{Targets: []wire.AuditTargetScenario{}}
	for _, target := range slices.Sorted(maps.Keys(targets)) {
		actions := targets[target]
		slices.Sort(actions)
		w.Targets = append(w.Targets, wire.AuditTargetScenario{TargetType: target, Actions: slices.Compact(actions)})
	}
	return w
}

func auditWire(e *audit.Entry) wire.AuditLog {
	w := wire.AuditLog{
		ID: e.ID, ActorID: e.ActorID, ActorEmail: e.ActorEmail, ActorAPIKeyPrefix: ptr(e.KeyPrefix), ActorAPIKeySuffix: ptr(e.KeySuffix),
		OrganizationID: ptr(e.OrganizationID), Action: e.Action, TargetType: ptr(e.TargetType), TargetID: ptr(e.TargetID), ErrorMessage: ptr(e.ErrorMessage),
		IPAddress: ptr(e.IPAddress), UserAgent: ptr(e.UserAgent), Source: ptr(e.Source), Metadata: e.Metadata, CreatedAt: wire.Stamp(e.CreatedAt),
	}
	if e.StatusCode != 0 {
		w.StatusCode = new(float64(e.StatusCode))
	}
	return w
}
