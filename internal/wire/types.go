package wire

// Values of GPUType.
const (
	GPUTypeH100       = "H100"
	GPUTypeRtxPro6000 = "RTX-PRO-6000"
	GPUTypeH200       = "H200"
	GPUTypeRtx4090    = "RTX-4090"
	GPUTypeRtx5090    = "RTX-5090"
)

// Values of JobStatus.
const (
	JobStatusPending    = "PENDING"
	JobStatusInProgress = "IN_PROGRESS"
	JobStatusCompleted  = "COMPLETED"
	JobStatusFailed     = "FAILED"
)

// Values of JobType.
const (
	JobTypeCreateSandbox                = "CREATE_SANDBOX"
	JobTypeStartSandbox                 = "START_SANDBOX"
	JobTypeStopSandbox                  = "STOP_SANDBOX"
	JobTypeDestroySandbox               = "DESTROY_SANDBOX"
	JobTypeResizeSandbox                = "RESIZE_SANDBOX"
	JobTypeCreateBackup                 = "CREATE_BACKUP"
	JobTypeBuildSnapshot                = "BUILD_SNAPSHOT"
	JobTypePullSnapshot                 = "PULL_SNAPSHOT"
	JobTypeRecoverSandbox               = "RECOVER_SANDBOX"
	JobTypeInspectSnapshotInRegistry    = "INSPECT_SNAPSHOT_IN_REGISTRY"
	JobTypeRemoveSnapshot               = "REMOVE_SNAPSHOT"
	JobTypeUpdateSandboxNetworkSettings = "UPDATE_SANDBOX_NETWORK_SETTINGS"
	JobTypeSnapshotSandbox              = "SNAPSHOT_SANDBOX"
	JobTypeForkSandbox                  = "FORK_SANDBOX"
	JobTypePauseSandbox                 = "PAUSE_SANDBOX"
	JobTypeUpdateSandboxSecrets         = "UPDATE_SANDBOX_SECRETS"
)

// Values of RegionType.
const (
	RegionTypeShared    = "shared"
	RegionTypeDedicated = "dedicated"
	RegionTypeCustom    = "custom"
)

// Values of RunnerClass.
const (
	RunnerClassContainer = "container"
)

// Values of RunnerState.
const (
	RunnerStateInitializing   = "initializing"
	RunnerStateReady          = "ready"
	RunnerStateDisabled       = "disabled"
	RunnerStateDecommissioned = "decommissioned"
	RunnerStateUnresponsive   = "unresponsive"
)

// Values of SandboxClass.
const (
	SandboxClassLinuxVm   = "linux-vm"
	SandboxClassContainer = "container"
	SandboxClassAndroid   = "android"
	SandboxClassWindows   = "windows"
)

// Values of SandboxDesiredState.
const (
	SandboxDesiredStateDestroyed = "destroyed"
	SandboxDesiredStateStarted   = "started"
	SandboxDesiredStateStopped   = "stopped"
	SandboxDesiredStateResized   = "resized"
	SandboxDesiredStateArchived  = "archived"
	SandboxDesiredStatePaused    = "paused"
)

// Values of SandboxState.
const (
	SandboxStateCreating         = "creating"
	SandboxStateRestoring        = "restoring"
	SandboxStateDestroyed        = "destroyed"
	SandboxStateDestroying       = "destroying"
	SandboxStateStarted          = "started"
	SandboxStateStopped          = "stopped"
	SandboxStateStarting         = "starting"
	SandboxStateStopping         = "stopping"
	SandboxStateError            = "error"
	SandboxStateBuildFailed      = "build_failed"
	SandboxStatePendingBuild     = "pending_build"
	SandboxStateBuildingSnapshot = "building_snapshot"
	SandboxStateUnknown          = "unknown"
	SandboxStatePullingSnapshot  = "pulling_snapshot"
	SandboxStateArchived         = "archived"
	SandboxStateArchiving        = "archiving"
	SandboxStateResizing         = "resizing"
	SandboxStateSnapshotting     = "snapshotting"
	SandboxStateForking          = "forking"
	SandboxStatePausing          = "pausing"
	SandboxStatePaused           = "paused"
	SandboxStateResuming         = "resuming"
)

// Values of SnapshotState.
const (
	SnapshotStateBuilding     = "building"
	SnapshotStatePending      = "pending"
	SnapshotStatePulling      = "pulling"
	SnapshotStateActive       = "active"
	SnapshotStateInactive     = "inactive"
	SnapshotStateError        = "error"
	SnapshotStateBuildFailed  = "build_failed"
	SnapshotStateRemoving     = "removing"
	SnapshotStateSnapshotting = "snapshotting"
)

// Values of VolumeState.
const (
	VolumeStateCreating      = "creating"
	VolumeStateReady         = "ready"
	VolumeStatePendingCreate = "pending_create"
	VolumeStatePendingDelete = "pending_delete"
	VolumeStateDeleting      = "deleting"
	VolumeStateDeleted       = "deleted"
	VolumeStateError         = "error"
)

// Values of WebhookEvent.
const (
	WebhookEventSandboxCreated       = "sandbox.created"
	WebhookEventSandboxStateUpdated  = "sandbox.state.updated"
	WebhookEventSnapshotCreated      = "snapshot.created"
	WebhookEventSnapshotStateUpdated = "snapshot.state.updated"
	WebhookEventSnapshotRemoved      = "snapshot.removed"
	WebhookEventVolumeCreated        = "volume.created"
	WebhookEventVolumeStateUpdated   = "volume.state.updated"
)

type AccountProvider struct {
	Name        string `json:"name" required:"true"`
	DisplayName string `json:"displayName" required:"true"`
	// Provider and Linked are newer than both public specs; clients of the latest
	// releases demand them. Provider is Name, Linked whether the user has an
	// identity of it.
	Provider string `json:"provider" required:"true"`
	Linked   bool   `json:"linked" required:"true"`
}

type AdminCreateOrganization struct {
	UserID          string `json:"userId" required:"true"`
	Name            string `json:"name" required:"true"`
	DefaultRegionID string `json:"defaultRegionId" required:"true"`
}

type AdminCreateRunner struct {
	RegionID   string   `json:"regionId" required:"true"`
	Name       string   `json:"name" required:"true"`
	Tags       []string `json:"tags,omitempty"`
	APIKey     string   `json:"apiKey" required:"true"`
	APIVersion string   `json:"apiVersion" required:"true"`
	Domain     *string  `json:"domain,omitempty"`
	APIURL     *string  `json:"apiUrl,omitempty"`
	ProxyURL   *string  `json:"proxyUrl,omitempty"`
	CPU        *float64 `json:"cpu,omitempty"`
	MemoryGiB  *float64 `json:"memoryGiB,omitempty"`
	DiskGiB    *float64 `json:"diskGiB,omitempty"`
}

type Announcement struct {
	Text         string  `json:"text" required:"true"`
	LearnMoreURL *string `json:"learnMoreUrl,omitempty"`
}

type APIKeyList struct {
	Name        string   `json:"name" required:"true"`
	Value       string   `json:"value" required:"true"`
	CreatedAt   string   `json:"createdAt" required:"true"`
	Permissions []string `json:"permissions" required:"true" enum:"write:registries,delete:registries,write:snapshots,delete:snapshots,write:sandboxes,delete:sandboxes,read:volumes,write:volumes,delete:volumes,write:regions,delete:regions,read:runners,write:runners,delete:runners,read:audit_logs,manage:api_keys,manage:secrets,read:limits,manage:sso,read:billing,manage:billing"`
	LastUsedAt  *string  `json:"lastUsedAt" required:"true" nullable:"true"`
	ExpiresAt   *string  `json:"expiresAt" required:"true" nullable:"true"`
	UserID      string   `json:"userId" required:"true"`
}

type APIKeyResponse struct {
	Name        string   `json:"name" required:"true"`
	Value       string   `json:"value" required:"true"`
	CreatedAt   string   `json:"createdAt" required:"true"`
	Permissions []string `json:"permissions" required:"true" enum:"write:registries,delete:registries,write:snapshots,delete:snapshots,write:sandboxes,delete:sandboxes,read:volumes,write:volumes,delete:volumes,write:regions,delete:regions,read:runners,write:runners,delete:runners,read:audit_logs,manage:api_keys,manage:secrets,read:limits,manage:sso,read:billing,manage:billing"`
	ExpiresAt   *string  `json:"expiresAt" required:"true" nullable:"true"`
}

type AuditLog struct {
	ID                string         `json:"id" required:"true"`
	ActorID           string         `json:"actorId" required:"true"`
	ActorEmail        string         `json:"actorEmail" required:"true"`
	ActorAPIKeyPrefix *string        `json:"actorApiKeyPrefix,omitempty"`
	ActorAPIKeySuffix *string        `json:"actorApiKeySuffix,omitempty"`
	OrganizationID    *string        `json:"organizationId,omitempty"`
	Action            string         `json:"action" required:"true"`
	TargetType        *string        `json:"targetType,omitempty"`
	TargetID          *string        `json:"targetId,omitempty"`
	StatusCode        *float64       `json:"statusCode,omitempty"`
	ErrorMessage      *string        `json:"errorMessage,omitempty"`
	IPAddress         *string        `json:"ipAddress,omitempty"`
	UserAgent         *string        `json:"userAgent,omitempty"`
	Source            *string        `json:"source,omitempty"`
	Metadata          map[string]any `json:"metadata,omitempty"`
	CreatedAt         string         `json:"createdAt" required:"true"`
}

type AuditScenarios struct {
	Targets []AuditTargetScenario `json:"targets" required:"true"`
}

type AuditTargetScenario struct {
	TargetType string   `json:"targetType" required:"true" enum:"api_key,organization,organization_invitation,organization_role,organization_user,docker_registry,runner,sandbox,snapshot,user,volume,warm_pool,region,secret,other,identity_provider"`
	Actions    []string `json:"actions" required:"true" enum:"create,read,update,delete,login,register,change_password,set_default,update_access,update_quota,create_region_quota,update_region_quota,delete_region_quota,suspend,unsuspend,accept,decline,link_account,unlink_account,leave_organization,regenerate_key_pair,update_scheduling,update_draining,start,stop,resize,replace_labels,create_backup,update_public_status,rotate_signing_key,set_auto_stop_interval,set_auto_pause_interval,set_ttl,set_auto_archive_interval,set_auto_delete_interval,archive,snapshot,fork,pause,get_port_preview_url,set_general_status,activate,deactivate,update_network_settings,update_secrets,send_webhook_message,initialize_webhooks,update_sandbox_default_limited_network_egress,update_preview_warning,update_sso_enabled,update_otel_config,delete_otel_config,create_ssh_access,revoke_ssh_access,recover,regenerate_proxy_api_key,regenerate_ssh_gateway_api_key,regenerate_snapshot_manager_credentials,auto_stop,auto_archive,auto_delete,ttl_expire,spot_evict"`
}

type AvailableSandboxClass struct {
	RegionID        string   `json:"regionId" required:"true"`
	SandboxClass    string   `json:"sandboxClass" required:"true" enum:"linux-vm,container,android,windows"`
	GPUAvailable    bool     `json:"gpuAvailable" required:"true"`
	AllowedGPUTypes []string `json:"allowedGpuTypes,omitzero" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
}

type BuildInfo struct {
	DockerfileContent *string  `json:"dockerfileContent,omitempty"`
	ContextHashes     []string `json:"contextHashes,omitempty"`
	CreatedAt         string   `json:"createdAt" required:"true"`
	UpdatedAt         string   `json:"updatedAt" required:"true"`
	SnapshotRef       string   `json:"snapshotRef" required:"true"`
}

type CreateAPIKey struct {
	Name        string   `json:"name" required:"true"`
	Permissions []string `json:"permissions" required:"true" enum:"write:registries,delete:registries,write:snapshots,delete:snapshots,write:sandboxes,delete:sandboxes,read:volumes,write:volumes,delete:volumes,write:regions,delete:regions,read:runners,write:runners,delete:runners,read:audit_logs,manage:api_keys,manage:secrets,read:limits,manage:sso,read:billing,manage:billing"`
	ExpiresAt   *string  `json:"expiresAt,omitempty" nullable:"true"`
}

type CreateBuildInfo struct {
	DockerfileContent string   `json:"dockerfileContent" required:"true"`
	ContextHashes     []string `json:"contextHashes,omitempty"`
}

type CreateDockerRegistry struct {
	Name     string  `json:"name" required:"true"`
	URL      string  `json:"url" required:"true"`
	Username string  `json:"username" required:"true"`
	Password string  `json:"password" required:"true"`
	Project  *string `json:"project,omitempty"`
}

type CreateIdentityProvider struct {
	Name                   string        `json:"name" required:"true"`
	OIDCConfig             OIDCIDPConfig `json:"oidcConfig" required:"true"`
	EmailDomains           []string      `json:"emailDomains" required:"true"`
	AllowAnyDomain         *bool         `json:"allowAnyDomain,omitempty"`
	TrustEmailVerified     *bool         `json:"trustEmailVerified,omitempty"`
	DefaultAssignedRoleIds []string      `json:"defaultAssignedRoleIds,omitempty"`
	Enabled                *bool         `json:"enabled,omitempty"`
}

type CreateLinkedAccount struct {
	Provider string `json:"provider" required:"true"`
	UserID   string `json:"userId" required:"true"`
}

type CreateOrganization struct {
	Name            string `json:"name" required:"true"`
	DefaultRegionID string `json:"defaultRegionId" required:"true"`
}

type CreateOrganizationInvitation struct {
	Email           string   `json:"email" required:"true"`
	Role            string   `json:"role" required:"true" enum:"owner,member"`
	AssignedRoleIds []string `json:"assignedRoleIds" required:"true"`
	ExpiresAt       *string  `json:"expiresAt,omitempty"`
}

type CreateOrganizationQuota struct {
	TotalCPUQuota                   *float64 `json:"totalCpuQuota,omitempty"`
	TotalMemoryQuota                *float64 `json:"totalMemoryQuota,omitempty"`
	TotalDiskQuota                  *float64 `json:"totalDiskQuota,omitempty"`
	TotalGPUQuota                   *float64 `json:"totalGpuQuota,omitempty"`
	MaxCPUPerSandbox                *float64 `json:"maxCpuPerSandbox,omitempty"`
	MaxMemoryPerSandbox             *float64 `json:"maxMemoryPerSandbox,omitempty"`
	MaxDiskPerSandbox               *float64 `json:"maxDiskPerSandbox,omitempty"`
	SnapshotQuota                   *float64 `json:"snapshotQuota,omitempty"`
	MaxSnapshotSize                 *float64 `json:"maxSnapshotSize,omitempty"`
	VolumeQuota                     *float64 `json:"volumeQuota,omitempty"`
	MaxConcurrentSnapshotProcessing *float64 `json:"maxConcurrentSnapshotProcessing,omitempty"`
}

type CreateOrganizationRegionQuota struct {
	SandboxClass                  string   `json:"sandboxClass" required:"true" enum:"linux-vm,container,android,windows"`
	TotalCPUQuota                 float64  `json:"totalCpuQuota" required:"true"`
	TotalMemoryQuota              float64  `json:"totalMemoryQuota" required:"true"`
	TotalDiskQuota                float64  `json:"totalDiskQuota" required:"true"`
	TotalGPUQuota                 float64  `json:"totalGpuQuota" required:"true"`
	AllowedGPUTypes               []string `json:"allowedGpuTypes,omitempty" nullable:"true" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	MaxCPUPerSandbox              *float64 `json:"maxCpuPerSandbox,omitempty" nullable:"true"`
	MaxMemoryPerSandbox           *float64 `json:"maxMemoryPerSandbox,omitempty" nullable:"true"`
	MaxDiskPerSandbox             *float64 `json:"maxDiskPerSandbox,omitempty" nullable:"true"`
	MaxDiskPerNonEphemeralSandbox *float64 `json:"maxDiskPerNonEphemeralSandbox,omitempty" nullable:"true"`
	MaxCPUPerGPU                  *float64 `json:"maxCpuPerGpu,omitempty" nullable:"true"`
	MaxMemoryPerGPU               *float64 `json:"maxMemoryPerGpu,omitempty" nullable:"true"`
	MaxDiskPerGPU                 *float64 `json:"maxDiskPerGpu,omitempty" nullable:"true"`
	MaxSandboxLifespan            *float64 `json:"maxSandboxLifespan,omitempty" nullable:"true"`
	MaxCPUPerGPUSandbox           *float64 `json:"maxCpuPerGpuSandbox,omitempty" nullable:"true"`
	MaxMemoryPerGPUSandbox        *float64 `json:"maxMemoryPerGpuSandbox,omitempty" nullable:"true"`
	MaxDiskPerGPUSandbox          *float64 `json:"maxDiskPerGpuSandbox,omitempty" nullable:"true"`
}

type CreateOrganizationRole struct {
	Name        string   `json:"name" required:"true"`
	Description string   `json:"description" required:"true"`
	Permissions []string `json:"permissions" required:"true" enum:"write:registries,delete:registries,write:snapshots,delete:snapshots,write:sandboxes,delete:sandboxes,read:volumes,write:volumes,delete:volumes,write:regions,delete:regions,read:runners,write:runners,delete:runners,read:audit_logs,manage:api_keys,manage:secrets,read:limits,manage:sso,read:billing,manage:billing"`
}

type CreateRegion struct {
	Name               string  `json:"name" required:"true"`
	ProxyURL           *string `json:"proxyUrl,omitempty" nullable:"true"`
	SSHGatewayURL      *string `json:"sshGatewayUrl,omitempty" nullable:"true"`
	SnapshotManagerURL *string `json:"snapshotManagerUrl,omitempty" nullable:"true"`
	OTelEndpoint       *string `json:"otelEndpoint,omitempty" nullable:"true"`
}

type CreateRegionResponse struct {
	ID                      string  `json:"id" required:"true"`
	ProxyAPIKey             *string `json:"proxyApiKey" nullable:"true"`
	SSHGatewayAPIKey        *string `json:"sshGatewayApiKey" nullable:"true"`
	SnapshotManagerUsername *string `json:"snapshotManagerUsername" nullable:"true"`
	SnapshotManagerPassword *string `json:"snapshotManagerPassword" nullable:"true"`
}

type CreateRunner struct {
	RegionID string   `json:"regionId" required:"true"`
	Name     string   `json:"name" required:"true"`
	Tags     []string `json:"tags,omitempty"`
}

type CreateRunnerResponse struct {
	ID     string `json:"id" required:"true"`
	APIKey string `json:"apiKey" required:"true"`
}

type CreateSandbox struct {
	Name                 *string             `json:"name,omitempty"`
	Snapshot             *string             `json:"snapshot,omitempty"`
	User                 *string             `json:"user,omitempty"`
	Env                  map[string]string   `json:"env,omitempty"`
	Labels               map[string]string   `json:"labels,omitempty"`
	Public               *bool               `json:"public,omitempty"`
	NetworkBlockAll      *bool               `json:"networkBlockAll,omitempty"`
	NetworkAllowList     *string             `json:"networkAllowList,omitempty"`
	DomainAllowList      *string             `json:"domainAllowList,omitempty"`
	OutboundProxyURL     *string             `json:"outboundProxyUrl,omitempty"`
	OTelEndpointOverride *string             `json:"otelEndpointOverride,omitempty"`
	Target               *string             `json:"target,omitempty"`
	CPU                  *int                `json:"cpu,omitempty"`
	GPU                  *int                `json:"gpu,omitempty"`
	GPUType              []string            `json:"gpuType,omitempty" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	Spot                 *bool               `json:"spot,omitempty"`
	Memory               *int                `json:"memory,omitempty"`
	Disk                 *int                `json:"disk,omitempty"`
	AutoStopInterval     *int                `json:"autoStopInterval,omitempty"`
	AutoPauseInterval    *int                `json:"autoPauseInterval,omitempty"`
	AutoArchiveInterval  *int                `json:"autoArchiveInterval,omitempty"`
	AutoDeleteInterval   *int                `json:"autoDeleteInterval,omitempty"`
	TTLMinutes           *int                `json:"ttlMinutes,omitempty"`
	Volumes              []SandboxVolume     `json:"volumes,omitempty"`
	BuildInfo            *CreateBuildInfo    `json:"buildInfo,omitempty"`
	LinkedSandbox        *string             `json:"linkedSandbox,omitempty"`
	Secrets              []map[string]string `json:"secrets,omitempty"`
}

type CreateSandboxSnapshot struct {
	Name          string `json:"name" required:"true"`
	IncludeMemory *bool  `json:"includeMemory,omitempty"`
}

type CreateSecret struct {
	Name        string   `json:"name" required:"true"`
	Value       string   `json:"value" required:"true"`
	Description *string  `json:"description,omitempty"`
	Hosts       []string `json:"hosts,omitempty"`
}

type CreateSnapshot struct {
	Name         string           `json:"name" required:"true"`
	ImageName    *string          `json:"imageName,omitempty"`
	Entrypoint   []string         `json:"entrypoint,omitempty"`
	CPU          *int             `json:"cpu,omitempty"`
	GPU          *int             `json:"gpu,omitempty"`
	GPUType      []string         `json:"gpuType,omitempty" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	Memory       *int             `json:"memory,omitempty"`
	Disk         *int             `json:"disk,omitempty"`
	BuildInfo    *CreateBuildInfo `json:"buildInfo,omitempty"`
	RegionID     *string          `json:"regionId,omitempty"`
	SandboxClass *string          `json:"sandboxClass,omitempty" enum:"linux-vm,container,android,windows"`
}

type CreateUser struct {
	ID                                  *string                  `json:"id,omitempty"`
	Name                                string                   `json:"name" required:"true"`
	Email                               *string                  `json:"email,omitempty"`
	PersonalOrganizationQuota           *CreateOrganizationQuota `json:"personalOrganizationQuota,omitempty"`
	PersonalOrganizationDefaultRegionID *string                  `json:"personalOrganizationDefaultRegionId,omitempty"`
	Role                                *string                  `json:"role,omitempty" enum:"admin,user"`
	EmailVerified                       *bool                    `json:"emailVerified,omitempty"`
	EmailVerifiedSource                 *string                  `json:"emailVerifiedSource,omitempty" enum:"auth0,admin,sso"`
}

type CreateVolume struct {
	Name string `json:"name" required:"true"`
}

type CreateWarmPool struct {
	Snapshot string  `json:"snapshot" required:"true"`
	Pool     float64 `json:"pool" required:"true" minimum:"1"`
	Target   *string `json:"target,omitempty"`
}

type DaytonaConfiguration struct {
	Version                string                  `json:"version" required:"true"`
	BuildSha               *string                 `json:"buildSha,omitempty"`
	Posthog                *PosthogConfig          `json:"posthog,omitempty"`
	OIDC                   OIDCConfig              `json:"oidc" required:"true"`
	SSOOIDC                *SSOOIDCConfig          `json:"ssoOidc,omitempty"`
	ForcedFeatureFlags     []string                `json:"forcedFeatureFlags,omitempty"`
	LinkedAccountsEnabled  bool                    `json:"linkedAccountsEnabled" required:"true"`
	Announcements          map[string]Announcement `json:"announcements" required:"true"`
	PylonAppID             *string                 `json:"pylonAppId,omitempty"`
	ProxyTemplateURL       string                  `json:"proxyTemplateUrl" required:"true"`
	ProxyToolboxURL        string                  `json:"proxyToolboxUrl" required:"true"`
	DefaultSnapshot        string                  `json:"defaultSnapshot" required:"true"`
	DashboardURL           string                  `json:"dashboardUrl" required:"true"`
	MaxAutoArchiveInterval float64                 `json:"maxAutoArchiveInterval" required:"true"`
	MaintenanceMode        bool                    `json:"maintananceMode" required:"true"`
	Environment            string                  `json:"environment" required:"true"`
	BillingAPIURL          *string                 `json:"billingApiUrl,omitempty"`
	AnalyticsAPIURL        *string                 `json:"analyticsApiUrl,omitempty"`
	StripePublishableKey   *string                 `json:"stripePublishableKey,omitempty"`
	SSHGatewayCommand      *string                 `json:"sshGatewayCommand,omitempty"`
	SSHGatewayPublicKey    *string                 `json:"sshGatewayPublicKey,omitempty"`
	RateLimit              *RateLimitConfig        `json:"rateLimit,omitempty"`
}

type DockerRegistry struct {
	ID           string `json:"id" required:"true"`
	Name         string `json:"name" required:"true"`
	URL          string `json:"url" required:"true"`
	Username     string `json:"username" required:"true"`
	Project      string `json:"project" required:"true"`
	RegistryType string `json:"registryType" required:"true" enum:"internal,organization,transient,backup"`
	CreatedAt    string `json:"createdAt" required:"true"`
	UpdatedAt    string `json:"updatedAt" required:"true"`
}

type ForkSandbox struct {
	Name *string `json:"name,omitempty"`
}

type HealthControllerCheck200Response struct {
	Status  *string                                              `json:"status,omitempty"`
	Info    map[string]HealthControllerCheck200ResponseInfoValue `json:"info" nullable:"true"`
	Error   map[string]HealthControllerCheck200ResponseInfoValue `json:"error" nullable:"true"`
	Details map[string]HealthControllerCheck200ResponseInfoValue `json:"details,omitempty"`
}

type HealthControllerCheck200ResponseInfoValue struct {
	Status string `json:"status" required:"true"`
}

type HealthControllerCheck503Response struct {
	Status  *string                                              `json:"status,omitempty"`
	Info    map[string]HealthControllerCheck200ResponseInfoValue `json:"info" nullable:"true"`
	Error   map[string]HealthControllerCheck200ResponseInfoValue `json:"error" nullable:"true"`
	Details map[string]HealthControllerCheck200ResponseInfoValue `json:"details,omitempty"`
}

type IdentityProvider struct {
	ID                     string                `json:"id" required:"true"`
	OrganizationID         string                `json:"organizationId" required:"true"`
	Name                   string                `json:"name" required:"true"`
	OIDCConfig             OIDCIDPConfigResponse `json:"oidcConfig" required:"true"`
	EmailDomains           []string              `json:"emailDomains" required:"true"`
	AllowAnyDomain         bool                  `json:"allowAnyDomain" required:"true"`
	TrustEmailVerified     bool                  `json:"trustEmailVerified" required:"true"`
	DefaultAssignedRoleIds []string              `json:"defaultAssignedRoleIds" required:"true"`
	Enabled                bool                  `json:"enabled" required:"true"`
	CreatedAt              string                `json:"createdAt" required:"true"`
	UpdatedAt              string                `json:"updatedAt" required:"true"`
}

type Job struct {
	ID           string         `json:"id" required:"true"`
	Type         string         `json:"type" required:"true" enum:"CREATE_SANDBOX,START_SANDBOX,STOP_SANDBOX,DESTROY_SANDBOX,RESIZE_SANDBOX,CREATE_BACKUP,BUILD_SNAPSHOT,PULL_SNAPSHOT,RECOVER_SANDBOX,INSPECT_SNAPSHOT_IN_REGISTRY,REMOVE_SNAPSHOT,UPDATE_SANDBOX_NETWORK_SETTINGS,SNAPSHOT_SANDBOX,FORK_SANDBOX,PAUSE_SANDBOX,UPDATE_SANDBOX_SECRETS"`
	Status       string         `json:"status" required:"true" enum:"PENDING,IN_PROGRESS,COMPLETED,FAILED"`
	ResourceType string         `json:"resourceType" required:"true" enum:"SANDBOX,SNAPSHOT,BACKUP"`
	ResourceID   string         `json:"resourceId" required:"true"`
	Payload      *string        `json:"payload,omitempty"`
	TraceContext map[string]any `json:"traceContext,omitempty"`
	ErrorMessage *string        `json:"errorMessage,omitempty"`
	CreatedAt    string         `json:"createdAt" required:"true"`
	UpdatedAt    *string        `json:"updatedAt,omitempty"`
}

type ListSandboxesResponse struct {
	Items      []SandboxListItem `json:"items" required:"true"`
	NextCursor *string           `json:"nextCursor" required:"true" nullable:"true"`
}

type ListSecretsResponse struct {
	Items      []Secret `json:"items" required:"true"`
	Total      float64  `json:"total" required:"true"`
	NextCursor *string  `json:"nextCursor" required:"true" nullable:"true"`
}

type LogEntry struct {
	Timestamp          string            `json:"timestamp" required:"true"`
	Body               string            `json:"body" required:"true"`
	SeverityText       string            `json:"severityText" required:"true"`
	SeverityNumber     *float64          `json:"severityNumber,omitempty"`
	ServiceName        string            `json:"serviceName" required:"true"`
	ResourceAttributes map[string]string `json:"resourceAttributes" required:"true"`
	LogAttributes      map[string]string `json:"logAttributes" required:"true"`
	TraceID            *string           `json:"traceId,omitempty"`
	SpanID             *string           `json:"spanId,omitempty"`
}

type MetricDataPoint struct {
	Timestamp string  `json:"timestamp" required:"true"`
	Value     float64 `json:"value" required:"true"`
}

type MetricSeries struct {
	MetricName string            `json:"metricName" required:"true"`
	DataPoints []MetricDataPoint `json:"dataPoints" required:"true"`
}

type MetricsResponse struct {
	Series []MetricSeries `json:"series" required:"true"`
}

type OIDCConfig struct {
	Issuer   string `json:"issuer" required:"true"`
	ClientID string `json:"clientId" required:"true"`
	Audience string `json:"audience" required:"true"`
	// Provider is in neither specification, but Python clients from 0.226 on fail
	// without it. Only the names of two services mean anything.
	Provider string `json:"provider"`
}

type OIDCIDPConfig struct {
	IssuerURL    string  `json:"issuerUrl" required:"true"`
	ClientID     string  `json:"clientId" required:"true"`
	ClientSecret string  `json:"clientSecret" required:"true"`
	Scope        *string `json:"scope,omitempty"`
}

type OIDCIDPConfigResponse struct {
	IssuerURL string  `json:"issuerUrl" required:"true"`
	ClientID  string  `json:"clientId" required:"true"`
	Scope     *string `json:"scope,omitempty"`
}

type Organization struct {
	ID        string `json:"id" required:"true"`
	Name      string `json:"name" required:"true"`
	CreatedBy string `json:"createdBy" required:"true"`
	Personal  bool   `json:"personal" required:"true"`
	CreatedAt string `json:"createdAt" required:"true"`
	UpdatedAt string `json:"updatedAt" required:"true"`
	Suspended bool   `json:"suspended" required:"true"`
	// SuspendedAt and the two after it are null of an organization that is not
	// suspended, whatever the specs say: clients have always been sent that.
	SuspendedAt                        *string `json:"suspendedAt" required:"true" nullable:"true"`
	SuspensionReason                   *string `json:"suspensionReason" required:"true" nullable:"true"`
	SuspendedUntil                     *string `json:"suspendedUntil" required:"true" nullable:"true"`
	SuspensionCleanupGracePeriodHours  float64 `json:"suspensionCleanupGracePeriodHours" required:"true"`
	MaxCPUPerSandbox                   float64 `json:"maxCpuPerSandbox" required:"true"`
	MaxMemoryPerSandbox                float64 `json:"maxMemoryPerSandbox" required:"true"`
	MaxDiskPerSandbox                  float64 `json:"maxDiskPerSandbox" required:"true"`
	SecretQuota                        float64 `json:"secretQuota" required:"true"`
	MaxSecretsPerSandbox               float64 `json:"maxSecretsPerSandbox" required:"true"`
	SnapshotDeactivationTimeoutMinutes float64 `json:"snapshotDeactivationTimeoutMinutes" required:"true"`
	SandboxLimitedNetworkEgress        bool    `json:"sandboxLimitedNetworkEgress" required:"true"`
	PreviewWarningEnabled              bool    `json:"previewWarningEnabled" required:"true"`
	SSOEnabled                         bool    `json:"ssoEnabled" required:"true"`
	// SCIMEnabled and DefaultQueueTimeout are newer than both public specs; clients
	// of the latest releases demand them.
	SCIMEnabled                         bool           `json:"scimEnabled" required:"true"`
	DefaultQueueTimeout                 *int           `json:"defaultQueueTimeout" required:"true" nullable:"true"` // minutes
	DefaultRegionID                     *string        `json:"defaultRegionId,omitempty"`
	AuthenticatedRateLimit              *float64       `json:"authenticatedRateLimit" required:"true" nullable:"true"`
	SandboxCreateRateLimit              *float64       `json:"sandboxCreateRateLimit" required:"true" nullable:"true"`
	SandboxLifecycleRateLimit           *float64       `json:"sandboxLifecycleRateLimit" required:"true" nullable:"true"`
	ExperimentalConfig                  map[string]any `json:"experimentalConfig" required:"true"`
	OTelConfig                          *OTelConfig    `json:"otelConfig" required:"true"`
	AuthenticatedRateLimitTTLSeconds    *float64       `json:"authenticatedRateLimitTtlSeconds" required:"true" nullable:"true"`
	SandboxCreateRateLimitTTLSeconds    *float64       `json:"sandboxCreateRateLimitTtlSeconds" required:"true" nullable:"true"`
	SandboxLifecycleRateLimitTTLSeconds *float64       `json:"sandboxLifecycleRateLimitTtlSeconds" required:"true" nullable:"true"`
}

type OrganizationInvitation struct {
	ID               string             `json:"id" required:"true"`
	Email            string             `json:"email" required:"true"`
	InvitedBy        string             `json:"invitedBy" required:"true"`
	OrganizationID   string             `json:"organizationId" required:"true"`
	OrganizationName string             `json:"organizationName" required:"true"`
	ExpiresAt        string             `json:"expiresAt" required:"true"`
	Status           string             `json:"status" required:"true" enum:"pending,accepted,declined,cancelled"`
	Role             string             `json:"role" required:"true" enum:"owner,member"`
	AssignedRoles    []OrganizationRole `json:"assignedRoles" required:"true"`
	CreatedAt        string             `json:"createdAt" required:"true"`
	UpdatedAt        string             `json:"updatedAt" required:"true"`
}

type OrganizationPreviewWarning struct {
	PreviewWarningEnabled bool `json:"previewWarningEnabled" required:"true"`
}

type OrganizationRole struct {
	ID          string   `json:"id" required:"true"`
	Name        string   `json:"name" required:"true"`
	Description string   `json:"description" required:"true"`
	Permissions []string `json:"permissions" required:"true" enum:"write:registries,delete:registries,write:snapshots,delete:snapshots,write:sandboxes,delete:sandboxes,read:volumes,write:volumes,delete:volumes,write:regions,delete:regions,read:runners,write:runners,delete:runners,read:audit_logs,manage:api_keys,manage:secrets,read:limits,manage:sso,read:billing,manage:billing"`
	IsGlobal    bool     `json:"isGlobal" required:"true"`
	CreatedAt   string   `json:"createdAt" required:"true"`
	UpdatedAt   string   `json:"updatedAt" required:"true"`
}

type OrganizationSandboxDefaultLimitedNetworkEgress struct {
	SandboxDefaultLimitedNetworkEgress bool `json:"sandboxDefaultLimitedNetworkEgress" required:"true"`
}

type OrganizationSSOEnabled struct {
	SSOEnabled bool `json:"ssoEnabled" required:"true"`
}

type OrganizationSuspension struct {
	Reason                            string   `json:"reason" required:"true"`
	Until                             *string  `json:"until,omitempty" nullable:"true"`
	SuspensionCleanupGracePeriodHours *float64 `json:"suspensionCleanupGracePeriodHours,omitempty" minimum:"0"`
}

type OrganizationUsageOverview struct {
	RegionUsage          []RegionUsageOverview `json:"regionUsage" required:"true"`
	TotalSnapshotQuota   float64               `json:"totalSnapshotQuota" required:"true"`
	CurrentSnapshotUsage float64               `json:"currentSnapshotUsage" required:"true"`
	TotalVolumeQuota     float64               `json:"totalVolumeQuota" required:"true"`
	CurrentVolumeUsage   float64               `json:"currentVolumeUsage" required:"true"`
}

type OrganizationUser struct {
	UserID         string             `json:"userId" required:"true"`
	OrganizationID string             `json:"organizationId" required:"true"`
	Name           string             `json:"name" required:"true"`
	Email          string             `json:"email" required:"true"`
	Role           string             `json:"role" required:"true" enum:"owner,member"`
	AssignedRoles  []OrganizationRole `json:"assignedRoles" required:"true"`
	CreatedAt      string             `json:"createdAt" required:"true"`
	UpdatedAt      string             `json:"updatedAt" required:"true"`
}

type OTelConfig struct {
	Endpoint       string            `json:"endpoint" required:"true"`
	Headers        map[string]string `json:"headers,omitempty" nullable:"true"`
	OrganizationID *string           `json:"organizationId,omitempty"`
}

type PaginatedAuditLogs struct {
	Items      []AuditLog `json:"items" required:"true"`
	Total      float64    `json:"total" required:"true"`
	Page       float64    `json:"page" required:"true"`
	TotalPages float64    `json:"totalPages" required:"true"`
	NextToken  *string    `json:"nextToken,omitempty"`
}

type PaginatedJobs struct {
	Items      []Job   `json:"items" required:"true"`
	Total      float64 `json:"total" required:"true"`
	Page       float64 `json:"page" required:"true"`
	TotalPages float64 `json:"totalPages" required:"true"`
}

type PaginatedLogs struct {
	Items      []LogEntry `json:"items" required:"true"`
	Total      float64    `json:"total" required:"true"`
	Page       float64    `json:"page" required:"true"`
	TotalPages float64    `json:"totalPages" required:"true"`
}

type PaginatedSandboxesDeprecated struct {
	Items      []Sandbox `json:"items" required:"true"`
	Total      float64   `json:"total" required:"true"`
	Page       float64   `json:"page" required:"true"`
	TotalPages float64   `json:"totalPages" required:"true"`
}

type PaginatedSnapshots struct {
	Items      []Snapshot `json:"items" required:"true"`
	Total      float64    `json:"total" required:"true"`
	Page       float64    `json:"page" required:"true"`
	TotalPages float64    `json:"totalPages" required:"true"`
}

type PaginatedTraces struct {
	Items      []TraceSummary `json:"items" required:"true"`
	Total      float64        `json:"total" required:"true"`
	Page       float64        `json:"page" required:"true"`
	TotalPages float64        `json:"totalPages" required:"true"`
}

type PendingSSOLink struct {
	ID             string  `json:"id" required:"true"`
	IdPName        string  `json:"idpName" required:"true"`
	OrganizationID string  `json:"organizationId" required:"true"`
	ProviderEmail  *string `json:"providerEmail" required:"true" nullable:"true"`
	CreatedAt      string  `json:"createdAt" required:"true"`
	ExpiresAt      string  `json:"expiresAt" required:"true"`
}

type PollJobsResponse struct {
	Jobs []Job `json:"jobs" required:"true"`
}

type PortPreviewURL struct {
	SandboxID string `json:"sandboxId" required:"true"`
	URL       string `json:"url" required:"true"`
	Token     string `json:"token" required:"true"`
}

type PosthogConfig struct {
	APIKey string `json:"apiKey" required:"true"`
	Host   string `json:"host" required:"true"`
}

type PreviewWarning struct {
	Enabled bool `json:"enabled" required:"true"`
}

type RateLimitConfig struct {
	FailedAuth       *RateLimitEntry `json:"failedAuth,omitempty"`
	Authenticated    *RateLimitEntry `json:"authenticated,omitempty"`
	SandboxCreate    *RateLimitEntry `json:"sandboxCreate,omitempty"`
	SandboxLifecycle *RateLimitEntry `json:"sandboxLifecycle,omitempty"`
	SandboxList      *RateLimitEntry `json:"sandboxList,omitempty"`
}

type RateLimitEntry struct {
	TTL   *float64 `json:"ttl,omitempty"`
	Limit *float64 `json:"limit,omitempty"`
}

type RegenerateAPIKeyResponse struct {
	APIKey string `json:"apiKey" required:"true"`
}

type Region struct {
	ID                 string  `json:"id" required:"true"`
	Name               string  `json:"name" required:"true"`
	OrganizationID     *string `json:"organizationId" nullable:"true"`
	RegionType         string  `json:"regionType" required:"true" enum:"shared,dedicated,custom"`
	CreatedAt          string  `json:"createdAt" required:"true"`
	UpdatedAt          string  `json:"updatedAt" required:"true"`
	ProxyURL           *string `json:"proxyUrl" nullable:"true"`
	SSHGatewayURL      *string `json:"sshGatewayUrl" nullable:"true"`
	SnapshotManagerURL *string `json:"snapshotManagerUrl" nullable:"true"`
	OTelEndpoint       *string `json:"otelEndpoint" nullable:"true"`
}

type RegionQuota struct {
	OrganizationID                string   `json:"organizationId" required:"true"`
	RegionID                      string   `json:"regionId" required:"true"`
	SandboxClass                  string   `json:"sandboxClass" required:"true" enum:"linux-vm,container,android,windows"`
	TotalCPUQuota                 float64  `json:"totalCpuQuota" required:"true"`
	TotalMemoryQuota              float64  `json:"totalMemoryQuota" required:"true"`
	TotalDiskQuota                float64  `json:"totalDiskQuota" required:"true"`
	TotalGPUQuota                 float64  `json:"totalGpuQuota" required:"true"`
	AllowedGPUTypes               []string `json:"allowedGpuTypes,omitzero" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	MaxCPUPerSandbox              *float64 `json:"maxCpuPerSandbox" required:"true" nullable:"true"`
	MaxMemoryPerSandbox           *float64 `json:"maxMemoryPerSandbox" required:"true" nullable:"true"`
	MaxDiskPerSandbox             *float64 `json:"maxDiskPerSandbox" required:"true" nullable:"true"`
	MaxDiskPerNonEphemeralSandbox *float64 `json:"maxDiskPerNonEphemeralSandbox" required:"true" nullable:"true"`
	MaxCPUPerGPU                  *float64 `json:"maxCpuPerGpu" required:"true" nullable:"true"`
	MaxMemoryPerGPU               *float64 `json:"maxMemoryPerGpu" required:"true" nullable:"true"`
	MaxDiskPerGPU                 *float64 `json:"maxDiskPerGpu" required:"true" nullable:"true"`
	MaxSandboxLifespan            *float64 `json:"maxSandboxLifespan" required:"true" nullable:"true"`
	MaxCPUPerGPUSandbox           *float64 `json:"maxCpuPerGpuSandbox" required:"true" nullable:"true"`
	MaxMemoryPerGPUSandbox        *float64 `json:"maxMemoryPerGpuSandbox" required:"true" nullable:"true"`
	MaxDiskPerGPUSandbox          *float64 `json:"maxDiskPerGpuSandbox" required:"true" nullable:"true"`
}

type RegionUsageOverview struct {
	RegionID                      string   `json:"regionId" required:"true"`
	SandboxClass                  string   `json:"sandboxClass" required:"true" enum:"linux-vm,container,android,windows"`
	TotalCPUQuota                 float64  `json:"totalCpuQuota" required:"true"`
	CurrentCPUUsage               float64  `json:"currentCpuUsage" required:"true"`
	TotalMemoryQuota              float64  `json:"totalMemoryQuota" required:"true"`
	CurrentMemoryUsage            float64  `json:"currentMemoryUsage" required:"true"`
	TotalDiskQuota                float64  `json:"totalDiskQuota" required:"true"`
	CurrentDiskUsage              float64  `json:"currentDiskUsage" required:"true"`
	TotalGPUQuota                 float64  `json:"totalGpuQuota" required:"true"`
	CurrentGPUUsage               float64  `json:"currentGpuUsage" required:"true"`
	AllowedGPUTypes               []string `json:"allowedGpuTypes,omitzero" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	MaxCPUPerSandbox              *float64 `json:"maxCpuPerSandbox" required:"true" nullable:"true"`
	MaxMemoryPerSandbox           *float64 `json:"maxMemoryPerSandbox" required:"true" nullable:"true"`
	MaxDiskPerSandbox             *float64 `json:"maxDiskPerSandbox" required:"true" nullable:"true"`
	MaxDiskPerNonEphemeralSandbox *float64 `json:"maxDiskPerNonEphemeralSandbox" required:"true" nullable:"true"`
	MaxCPUPerGPU                  *float64 `json:"maxCpuPerGpu" required:"true" nullable:"true"`
	MaxMemoryPerGPU               *float64 `json:"maxMemoryPerGpu" required:"true" nullable:"true"`
	MaxDiskPerGPU                 *float64 `json:"maxDiskPerGpu" required:"true" nullable:"true"`
	MaxCPUPerGPUSandbox           *float64 `json:"maxCpuPerGpuSandbox" required:"true" nullable:"true"`
	MaxMemoryPerGPUSandbox        *float64 `json:"maxMemoryPerGpuSandbox" required:"true" nullable:"true"`
	MaxDiskPerGPUSandbox          *float64 `json:"maxDiskPerGpuSandbox" required:"true" nullable:"true"`
}

type RegistryPushAccess struct {
	Username    string `json:"username" required:"true"`
	Secret      string `json:"secret" required:"true"`
	RegistryURL string `json:"registryUrl" required:"true"`
	RegistryID  string `json:"registryId" required:"true"`
	Project     string `json:"project" required:"true"`
	ExpiresAt   string `json:"expiresAt" required:"true"`
}

type ResizeSandbox struct {
	CPU    *int `json:"cpu,omitempty" minimum:"1"`
	Memory *int `json:"memory,omitempty" minimum:"1"`
	Disk   *int `json:"disk,omitempty" minimum:"1"`
}

type Runner struct {
	ID                           string   `json:"id" required:"true"`
	Domain                       *string  `json:"domain,omitempty"`
	APIURL                       *string  `json:"apiUrl,omitempty"`
	ProxyURL                     *string  `json:"proxyUrl,omitempty"`
	CPU                          float64  `json:"cpu" required:"true"`
	Memory                       float64  `json:"memory" required:"true"`
	Disk                         float64  `json:"disk" required:"true"`
	GPU                          *float64 `json:"gpu,omitempty"`
	GPUType                      *string  `json:"gpuType,omitempty"`
	SandboxClass                 *string  `json:"sandboxClass,omitempty" enum:"linux-vm,container,android,windows"`
	CurrentCPUUsagePercentage    *float64 `json:"currentCpuUsagePercentage,omitempty"`
	CurrentMemoryUsagePercentage *float64 `json:"currentMemoryUsagePercentage,omitempty"`
	CurrentDiskUsagePercentage   *float64 `json:"currentDiskUsagePercentage,omitempty"`
	CurrentAllocatedCPU          *float64 `json:"currentAllocatedCpu,omitempty"`
	CurrentAllocatedMemoryGiB    *float64 `json:"currentAllocatedMemoryGiB,omitempty"`
	CurrentAllocatedDiskGiB      *float64 `json:"currentAllocatedDiskGiB,omitempty"`
	CurrentSnapshotCount         *float64 `json:"currentSnapshotCount,omitempty"`
	CurrentStartedSandboxes      *float64 `json:"currentStartedSandboxes,omitempty"`
	AvailabilityScore            *float64 `json:"availabilityScore,omitempty"`
	Region                       string   `json:"region" required:"true"`
	Name                         string   `json:"name" required:"true"`
	State                        string   `json:"state" required:"true" enum:"initializing,ready,disabled,decommissioned,unresponsive"`
	LastChecked                  *string  `json:"lastChecked,omitempty"`
	Unschedulable                bool     `json:"unschedulable" required:"true"`
	Tags                         []string `json:"tags" required:"true"`
	CreatedAt                    string   `json:"createdAt" required:"true"`
	UpdatedAt                    string   `json:"updatedAt" required:"true"`
	Version                      string   `json:"version" required:"true"`
	APIVersion                   string   `json:"apiVersion" required:"true"`
	RunnerClass                  string   `json:"runnerClass" required:"true" enum:"container"`
	AppVersion                   *string  `json:"appVersion,omitempty"`
	Class                        *string  `json:"class,omitempty"`
}

type RunnerFull struct {
	ID                           string   `json:"id" required:"true"`
	Domain                       *string  `json:"domain,omitempty"`
	APIURL                       *string  `json:"apiUrl,omitempty"`
	ProxyURL                     *string  `json:"proxyUrl,omitempty"`
	CPU                          float64  `json:"cpu" required:"true"`
	Memory                       float64  `json:"memory" required:"true"`
	Disk                         float64  `json:"disk" required:"true"`
	GPU                          *float64 `json:"gpu,omitempty"`
	GPUType                      *string  `json:"gpuType,omitempty"`
	SandboxClass                 *string  `json:"sandboxClass,omitempty" enum:"linux-vm,container,android,windows"`
	CurrentCPUUsagePercentage    *float64 `json:"currentCpuUsagePercentage,omitempty"`
	CurrentMemoryUsagePercentage *float64 `json:"currentMemoryUsagePercentage,omitempty"`
	CurrentDiskUsagePercentage   *float64 `json:"currentDiskUsagePercentage,omitempty"`
	CurrentAllocatedCPU          *float64 `json:"currentAllocatedCpu,omitempty"`
	CurrentAllocatedMemoryGiB    *float64 `json:"currentAllocatedMemoryGiB,omitempty"`
	CurrentAllocatedDiskGiB      *float64 `json:"currentAllocatedDiskGiB,omitempty"`
	CurrentSnapshotCount         *float64 `json:"currentSnapshotCount,omitempty"`
	CurrentStartedSandboxes      *float64 `json:"currentStartedSandboxes,omitempty"`
	AvailabilityScore            *float64 `json:"availabilityScore,omitempty"`
	Region                       string   `json:"region" required:"true"`
	Name                         string   `json:"name" required:"true"`
	State                        string   `json:"state" required:"true" enum:"initializing,ready,disabled,decommissioned,unresponsive"`
	LastChecked                  *string  `json:"lastChecked,omitempty"`
	Unschedulable                bool     `json:"unschedulable" required:"true"`
	Tags                         []string `json:"tags" required:"true"`
	CreatedAt                    string   `json:"createdAt" required:"true"`
	UpdatedAt                    string   `json:"updatedAt" required:"true"`
	Version                      string   `json:"version" required:"true"`
	APIVersion                   string   `json:"apiVersion" required:"true"`
	RunnerClass                  string   `json:"runnerClass" required:"true" enum:"container"`
	AppVersion                   *string  `json:"appVersion,omitempty"`
	Class                        *string  `json:"class,omitempty"`
	APIKey                       string   `json:"apiKey" required:"true"`
	RegionType                   *string  `json:"regionType,omitempty" enum:"shared,dedicated,custom"`
}

type RunnerHealthMetrics struct {
	CurrentCPULoadAverage        float64  `json:"currentCpuLoadAverage" required:"true"`
	CurrentCPUUsagePercentage    float64  `json:"currentCpuUsagePercentage" required:"true"`
	CurrentMemoryUsagePercentage float64  `json:"currentMemoryUsagePercentage" required:"true"`
	CurrentDiskUsagePercentage   float64  `json:"currentDiskUsagePercentage" required:"true"`
	CurrentAllocatedCPU          float64  `json:"currentAllocatedCpu" required:"true"`
	CurrentAllocatedMemoryGiB    float64  `json:"currentAllocatedMemoryGiB" required:"true"`
	CurrentAllocatedDiskGiB      float64  `json:"currentAllocatedDiskGiB" required:"true"`
	CurrentSnapshotCount         float64  `json:"currentSnapshotCount" required:"true"`
	CurrentStartedSandboxes      float64  `json:"currentStartedSandboxes" required:"true"`
	CPU                          float64  `json:"cpu" required:"true"`
	MemoryGiB                    float64  `json:"memoryGiB" required:"true"`
	DiskGiB                      float64  `json:"diskGiB" required:"true"`
	GPU                          *float64 `json:"gpu,omitempty"`
	GPUType                      *string  `json:"gpuType,omitempty"`
}

type RunnerHealthcheck struct {
	Metrics       *RunnerHealthMetrics  `json:"metrics,omitempty"`
	ServiceHealth []RunnerServiceHealth `json:"serviceHealth,omitempty"`
	Domain        *string               `json:"domain,omitempty"`
	ProxyURL      *string               `json:"proxyUrl,omitempty"`
	APIURL        *string               `json:"apiUrl,omitempty"`
	AppVersion    string                `json:"appVersion" required:"true"`
	// Capabilities are what the runner can do beyond the least, such as "pause"
	// and "fork". Ours: others leave it out, and ignore it.
	Capabilities []string `json:"capabilities,omitempty" maxItems:"64"`
}

type RunnerServiceHealth struct {
	ServiceName string  `json:"serviceName" required:"true"`
	Healthy     bool    `json:"healthy" required:"true"`
	ErrorReason *string `json:"errorReason,omitempty"`
}

type RunnerSnapshot struct {
	RunnerSnapshotID string  `json:"runnerSnapshotId" required:"true"`
	RunnerID         string  `json:"runnerId" required:"true"`
	RunnerDomain     *string `json:"runnerDomain,omitempty"`
}

type Sandbox struct {
	ID              string            `json:"id" required:"true"`
	OrganizationID  string            `json:"organizationId" required:"true"`
	Name            string            `json:"name" required:"true"`
	Snapshot        *string           `json:"snapshot,omitempty"`
	User            string            `json:"user" required:"true"`
	Env             map[string]string `json:"env" required:"true"`
	Labels          map[string]string `json:"labels" required:"true"`
	Public          bool              `json:"public" required:"true"`
	NetworkBlockAll bool              `json:"networkBlockAll" required:"true"`
	// KVM is in neither specification, but Python clients from 0.226 on fail without it.
	KVM                  bool            `json:"kvm"`
	NetworkAllowList     *string         `json:"networkAllowList,omitempty"`
	DomainAllowList      *string         `json:"domainAllowList,omitempty"`
	OutboundProxyURL     *string         `json:"outboundProxyUrl,omitempty"`
	OTelEndpointOverride *string         `json:"otelEndpointOverride,omitempty"`
	Target               string          `json:"target" required:"true"`
	CPU                  float64         `json:"cpu" required:"true"`
	GPU                  float64         `json:"gpu" required:"true"`
	Spot                 *bool           `json:"spot,omitempty"`
	SpotEvictedAt        *string         `json:"spotEvictedAt,omitempty"`
	GPUType              *string         `json:"gpuType,omitempty" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	Memory               float64         `json:"memory" required:"true"`
	Disk                 float64         `json:"disk" required:"true"`
	State                *string         `json:"state,omitempty" enum:"creating,restoring,destroyed,destroying,started,stopped,starting,stopping,error,build_failed,pending_build,building_snapshot,unknown,pulling_snapshot,archived,archiving,resizing,snapshotting,forking,pausing,paused,resuming"`
	DesiredState         *string         `json:"desiredState,omitempty" enum:"destroyed,started,stopped,resized,archived,paused"`
	ErrorReason          *string         `json:"errorReason,omitempty"`
	Recoverable          *bool           `json:"recoverable,omitempty"`
	WarmPoolID           *string         `json:"warmPoolId,omitempty"`
	BackupState          *string         `json:"backupState,omitempty" enum:"None,Pending,InProgress,Completed,Error"`
	BackupCreatedAt      *string         `json:"backupCreatedAt,omitempty"`
	AutoStopInterval     *float64        `json:"autoStopInterval,omitempty"`
	AutoPauseInterval    *float64        `json:"autoPauseInterval,omitempty"`
	AutoArchiveInterval  *float64        `json:"autoArchiveInterval,omitempty"`
	AutoDeleteInterval   *float64        `json:"autoDeleteInterval,omitempty"`
	AutoDestroyAt        *string         `json:"autoDestroyAt,omitempty"`
	Volumes              []SandboxVolume `json:"volumes,omitempty"`
	BuildInfo            *BuildInfo      `json:"buildInfo,omitempty"`
	CreatedAt            *string         `json:"createdAt,omitempty"`
	UpdatedAt            *string         `json:"updatedAt,omitempty"`
	LastActivityAt       *string         `json:"lastActivityAt,omitempty"`
	SandboxClass         *string         `json:"sandboxClass,omitempty" enum:"linux-vm,container,android,windows"`
	DaemonVersion        *string         `json:"daemonVersion,omitempty"`
	RunnerID             *string         `json:"runnerId,omitempty"`
	LinkedSandboxID      *string         `json:"linkedSandboxId,omitempty"`
	ToolboxProxyURL      string          `json:"toolboxProxyUrl" required:"true"`
	// StartedAt and StoppedAt are ours, in neither specification: when it was
	// started last, and stopped or paused last.
	StartedAt *string `json:"startedAt,omitempty"`
	StoppedAt *string `json:"stoppedAt,omitempty"`
}

type SandboxLabels struct {
	Labels map[string]string `json:"labels" required:"true"`
}

type SandboxListItem struct {
	ID                  string            `json:"id" required:"true"`
	OrganizationID      string            `json:"organizationId" required:"true"`
	Name                string            `json:"name" required:"true"`
	Target              string            `json:"target" required:"true"`
	RunnerID            *string           `json:"runnerId,omitempty"`
	SandboxClass        *string           `json:"sandboxClass,omitempty" enum:"linux-vm,container,android,windows"`
	State               *string           `json:"state,omitempty" enum:"creating,restoring,destroyed,destroying,started,stopped,starting,stopping,error,build_failed,pending_build,building_snapshot,unknown,pulling_snapshot,archived,archiving,resizing,snapshotting,forking,pausing,paused,resuming"`
	DesiredState        *string           `json:"desiredState,omitempty" enum:"destroyed,started,stopped,resized,archived,paused"`
	Snapshot            *string           `json:"snapshot,omitempty"`
	User                string            `json:"user" required:"true"`
	ErrorReason         *string           `json:"errorReason,omitempty"`
	Recoverable         *bool             `json:"recoverable,omitempty"`
	Public              bool              `json:"public" required:"true"`
	NetworkBlockAll     bool              `json:"networkBlockAll" required:"true"`
	NetworkAllowList    *string           `json:"networkAllowList,omitempty"`
	DomainAllowList     *string           `json:"domainAllowList,omitempty"`
	CPU                 float64           `json:"cpu" required:"true"`
	GPU                 float64           `json:"gpu" required:"true"`
	Spot                *bool             `json:"spot,omitempty"`
	SpotEvictedAt       *string           `json:"spotEvictedAt,omitempty"`
	GPUType             *string           `json:"gpuType,omitempty" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	Memory              float64           `json:"memory" required:"true"`
	Disk                float64           `json:"disk" required:"true"`
	Labels              map[string]string `json:"labels" required:"true"`
	BackupState         *string           `json:"backupState,omitempty" enum:"None,Pending,InProgress,Completed,Error"`
	AutoStopInterval    *float64          `json:"autoStopInterval,omitempty"`
	AutoPauseInterval   *float64          `json:"autoPauseInterval,omitempty"`
	AutoArchiveInterval *float64          `json:"autoArchiveInterval,omitempty"`
	AutoDeleteInterval  *float64          `json:"autoDeleteInterval,omitempty"`
	AutoDestroyAt       *string           `json:"autoDestroyAt,omitempty"`
	CreatedAt           *string           `json:"createdAt,omitempty"`
	UpdatedAt           *string           `json:"updatedAt,omitempty"`
	LastActivityAt      *string           `json:"lastActivityAt,omitempty"`
	DaemonVersion       *string           `json:"daemonVersion,omitempty"`
	WarmPoolID          *string           `json:"warmPoolId,omitempty"`
	ToolboxProxyURL     string            `json:"toolboxProxyUrl" required:"true"`
	// StartedAt and StoppedAt are ours, as of a Sandbox.
	StartedAt *string `json:"startedAt,omitempty"`
	StoppedAt *string `json:"stoppedAt,omitempty"`
}

// SandboxSecret is a secret of a sandbox as its runner needs it.
type SandboxSecret struct {
	Env         string   `json:"env"`
	Placeholder string   `json:"placeholder"`
	Value       string   `json:"value"`
	Hosts       []string `json:"hosts"`
}

type SandboxVolume struct {
	VolumeID  string  `json:"volumeId" required:"true"`
	MountPath string  `json:"mountPath" required:"true"`
	Subpath   *string `json:"subpath,omitempty"`
	// ReadOnly is ours, in neither specification: in a server's answer it says that
	// the server knows of it.
	ReadOnly bool `json:"readOnly,omitempty"`
}

type Secret struct {
	ID          string   `json:"id" required:"true"`
	Name        string   `json:"name" required:"true"`
	Description *string  `json:"description,omitempty"`
	CreatedAt   string   `json:"createdAt" required:"true"`
	Placeholder string   `json:"placeholder" required:"true"`
	Hosts       []string `json:"hosts" required:"true"`
	UpdatedAt   string   `json:"updatedAt" required:"true"`
}

type SendWebhook struct {
	EventType string         `json:"eventType" required:"true" enum:"sandbox.created,sandbox.state.updated,snapshot.created,snapshot.state.updated,snapshot.removed,volume.created,volume.state.updated"`
	Payload   map[string]any `json:"payload" required:"true"`
	EventID   *string        `json:"eventId,omitempty"`
}

type SetSnapshotGeneralStatus struct {
	General bool `json:"general" required:"true"`
}

type SignedPortPreviewURL struct {
	SandboxID string `json:"sandboxId" required:"true"`
	Port      int    `json:"port" required:"true"`
	Token     string `json:"token" required:"true"`
	URL       string `json:"url" required:"true"`
}

type Snapshot struct {
	ID              string     `json:"id" required:"true"`
	OrganizationID  *string    `json:"organizationId,omitempty"`
	General         bool       `json:"general" required:"true"`
	Name            string     `json:"name" required:"true"`
	ImageName       *string    `json:"imageName,omitempty"`
	State           string     `json:"state" required:"true" enum:"building,pending,pulling,active,inactive,error,build_failed,removing,snapshotting"`
	Size            *float64   `json:"size" required:"true" nullable:"true"`
	Entrypoint      []string   `json:"entrypoint" required:"true" nullable:"true"`
	CPU             float64    `json:"cpu" required:"true"`
	GPU             float64    `json:"gpu" required:"true"`
	GPUType         *string    `json:"gpuType,omitempty" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	Mem             float64    `json:"mem" required:"true"`
	Disk            float64    `json:"disk" required:"true"`
	ErrorReason     *string    `json:"errorReason" required:"true" nullable:"true"`
	CreatedAt       string     `json:"createdAt" required:"true"`
	UpdatedAt       string     `json:"updatedAt" required:"true"`
	LastUsedAt      *string    `json:"lastUsedAt" required:"true" nullable:"true"`
	BuildInfo       *BuildInfo `json:"buildInfo,omitempty"`
	RegionIds       []string   `json:"regionIds,omitempty"`
	InitialRunnerID *string    `json:"initialRunnerId,omitempty"`
	Ref             *string    `json:"ref,omitempty"`
	SourceSandboxID *string    `json:"sourceSandboxId" required:"true" nullable:"true"`
	SandboxClass    *string    `json:"sandboxClass,omitempty" enum:"linux-vm,container,android,windows"`
}

type SnapshotManagerCredentials struct {
	Username string `json:"username" required:"true"`
	Password string `json:"password" required:"true"`
}

type SSHAccess struct {
	ID         string `json:"id" required:"true"`
	SandboxID  string `json:"sandboxId" required:"true"`
	Token      string `json:"token" required:"true"`
	ExpiresAt  string `json:"expiresAt" required:"true"`
	CreatedAt  string `json:"createdAt" required:"true"`
	UpdatedAt  string `json:"updatedAt" required:"true"`
	SSHCommand string `json:"sshCommand" required:"true"`
}

type SSHAccessValidation struct {
	Valid bool `json:"valid" required:"true"`
	// SandboxID is null if the token opens nothing.
	SandboxID *string `json:"sandboxId" required:"true" nullable:"true"`
}

type SSOOIDCConfig struct {
	Issuer   string `json:"issuer" required:"true"`
	ClientID string `json:"clientId" required:"true"`
}

type StorageAccess struct {
	AccessKey      string `json:"accessKey" required:"true"`
	Secret         string `json:"secret" required:"true"`
	SessionToken   string `json:"sessionToken" required:"true"`
	StorageURL     string `json:"storageUrl" required:"true"`
	OrganizationID string `json:"organizationId" required:"true"`
	Bucket         string `json:"bucket" required:"true"`
	Region         string `json:"region" required:"true"`
}

type TestIdentityProviderConnection struct {
	IssuerURL string `json:"issuerUrl" required:"true"`
}

type TestIdentityProviderConnectionResponse struct {
	Success bool    `json:"success" required:"true"`
	Issuer  *string `json:"issuer,omitempty"`
	Error   *string `json:"error,omitempty"`
}

type ToolboxProxyURL struct {
	URL string `json:"url" required:"true"`
}

type TraceSpan struct {
	TraceID        string            `json:"traceId" required:"true"`
	SpanID         string            `json:"spanId" required:"true"`
	ParentSpanID   *string           `json:"parentSpanId,omitempty"`
	SpanName       string            `json:"spanName" required:"true"`
	Timestamp      string            `json:"timestamp" required:"true"`
	DurationNs     float64           `json:"durationNs" required:"true"`
	SpanAttributes map[string]string `json:"spanAttributes" required:"true"`
	StatusCode     *string           `json:"statusCode,omitempty"`
	StatusMessage  *string           `json:"statusMessage,omitempty"`
}

type TraceSummary struct {
	TraceID      string  `json:"traceId" required:"true"`
	RootSpanName string  `json:"rootSpanName" required:"true"`
	StartTime    string  `json:"startTime" required:"true"`
	EndTime      string  `json:"endTime" required:"true"`
	DurationMs   float64 `json:"durationMs" required:"true"`
	SpanCount    float64 `json:"spanCount" required:"true"`
	StatusCode   *string `json:"statusCode,omitempty"`
}

type UpdateDockerRegistry struct {
	Name     string  `json:"name" required:"true"`
	URL      string  `json:"url" required:"true"`
	Username string  `json:"username" required:"true"`
	Password *string `json:"password,omitempty"`
	Project  *string `json:"project,omitempty"`
}

type UpdateIdentityProvider struct {
	Name                   *string              `json:"name,omitempty"`
	OIDCConfig             *UpdateOIDCIDPConfig `json:"oidcConfig,omitempty"`
	EmailDomains           []string             `json:"emailDomains,omitempty"`
	AllowAnyDomain         *bool                `json:"allowAnyDomain,omitempty"`
	TrustEmailVerified     *bool                `json:"trustEmailVerified,omitempty"`
	DefaultAssignedRoleIds []string             `json:"defaultAssignedRoleIds,omitempty"`
	Enabled                *bool                `json:"enabled,omitempty"`
}

type UpdateJobStatus struct {
	Status         string  `json:"status" required:"true" enum:"PENDING,IN_PROGRESS,COMPLETED,FAILED"`
	ErrorMessage   *string `json:"errorMessage,omitempty"`
	ResultMetadata *string `json:"resultMetadata,omitempty"`
}

type UpdateLastActivity struct {
	ActivityType *string `json:"activityType,omitempty"`
}

type UpdateOIDCIDPConfig struct {
	IssuerURL    *string `json:"issuerUrl,omitempty"`
	ClientID     *string `json:"clientId,omitempty"`
	ClientSecret *string `json:"clientSecret,omitempty"`
	Scope        *string `json:"scope,omitempty"`
}

type UpdateOrganizationDefaultRegion struct {
	DefaultRegionID string `json:"defaultRegionId" required:"true"`
}

type UpdateOrganizationInvitation struct {
	Role            string   `json:"role" required:"true" enum:"owner,member"`
	AssignedRoleIds []string `json:"assignedRoleIds" required:"true"`
	ExpiresAt       *string  `json:"expiresAt,omitempty"`
}

type UpdateOrganizationMemberAccess struct {
	Role            string   `json:"role" required:"true" enum:"owner,member"`
	AssignedRoleIds []string `json:"assignedRoleIds" required:"true"`
}

type UpdateOrganizationQuota struct {
	MaxCPUPerSandbox                    *float64 `json:"maxCpuPerSandbox,omitempty" nullable:"true"`
	MaxMemoryPerSandbox                 *float64 `json:"maxMemoryPerSandbox,omitempty" nullable:"true"`
	MaxDiskPerSandbox                   *float64 `json:"maxDiskPerSandbox,omitempty" nullable:"true"`
	SnapshotQuota                       *float64 `json:"snapshotQuota,omitempty" nullable:"true"`
	MaxSnapshotSize                     *float64 `json:"maxSnapshotSize,omitempty" nullable:"true"`
	VolumeQuota                         *float64 `json:"volumeQuota,omitempty" nullable:"true"`
	SecretQuota                         *float64 `json:"secretQuota,omitempty" nullable:"true"`
	MaxSecretsPerSandbox                *float64 `json:"maxSecretsPerSandbox,omitempty" nullable:"true"`
	AuthenticatedRateLimit              *float64 `json:"authenticatedRateLimit,omitempty" nullable:"true"`
	SandboxCreateRateLimit              *float64 `json:"sandboxCreateRateLimit,omitempty" nullable:"true"`
	SandboxLifecycleRateLimit           *float64 `json:"sandboxLifecycleRateLimit,omitempty" nullable:"true"`
	AuthenticatedRateLimitTTLSeconds    *float64 `json:"authenticatedRateLimitTtlSeconds,omitempty" nullable:"true"`
	SandboxCreateRateLimitTTLSeconds    *float64 `json:"sandboxCreateRateLimitTtlSeconds,omitempty" nullable:"true"`
	SandboxLifecycleRateLimitTTLSeconds *float64 `json:"sandboxLifecycleRateLimitTtlSeconds,omitempty" nullable:"true"`
	SnapshotDeactivationTimeoutMinutes  *float64 `json:"snapshotDeactivationTimeoutMinutes,omitempty" nullable:"true"`
	MaxConcurrentSnapshotProcessing     *float64 `json:"maxConcurrentSnapshotProcessing,omitempty" nullable:"true"`
}

type UpdateOrganizationRegionQuota struct {
	SandboxClass                  *string  `json:"sandboxClass,omitempty" enum:"linux-vm,container,android,windows"`
	TotalCPUQuota                 *float64 `json:"totalCpuQuota,omitempty" nullable:"true"`
	TotalMemoryQuota              *float64 `json:"totalMemoryQuota,omitempty" nullable:"true"`
	TotalDiskQuota                *float64 `json:"totalDiskQuota,omitempty" nullable:"true"`
	TotalGPUQuota                 *float64 `json:"totalGpuQuota,omitempty" nullable:"true"`
	AllowedGPUTypes               []string `json:"allowedGpuTypes,omitempty" nullable:"true" enum:"H100,RTX-PRO-6000,H200,RTX-4090,RTX-5090"`
	MaxCPUPerSandbox              *float64 `json:"maxCpuPerSandbox,omitempty" nullable:"true"`
	MaxMemoryPerSandbox           *float64 `json:"maxMemoryPerSandbox,omitempty" nullable:"true"`
	MaxDiskPerSandbox             *float64 `json:"maxDiskPerSandbox,omitempty" nullable:"true"`
	MaxDiskPerNonEphemeralSandbox *float64 `json:"maxDiskPerNonEphemeralSandbox,omitempty" nullable:"true"`
	MaxCPUPerGPU                  *float64 `json:"maxCpuPerGpu,omitempty" nullable:"true"`
	MaxMemoryPerGPU               *float64 `json:"maxMemoryPerGpu,omitempty" nullable:"true"`
	MaxDiskPerGPU                 *float64 `json:"maxDiskPerGpu,omitempty" nullable:"true"`
	MaxSandboxLifespan            *float64 `json:"maxSandboxLifespan,omitempty" nullable:"true"`
	MaxCPUPerGPUSandbox           *float64 `json:"maxCpuPerGpuSandbox,omitempty" nullable:"true"`
	MaxMemoryPerGPUSandbox        *float64 `json:"maxMemoryPerGpuSandbox,omitempty" nullable:"true"`
	MaxDiskPerGPUSandbox          *float64 `json:"maxDiskPerGpuSandbox,omitempty" nullable:"true"`
}

type UpdateOrganizationRole struct {
	Name        string   `json:"name" required:"true"`
	Description string   `json:"description" required:"true"`
	Permissions []string `json:"permissions" required:"true" enum:"write:registries,delete:registries,write:snapshots,delete:snapshots,write:sandboxes,delete:sandboxes,read:volumes,write:volumes,delete:volumes,write:regions,delete:regions,read:runners,write:runners,delete:runners,read:audit_logs,manage:api_keys,manage:secrets,read:limits,manage:sso,read:billing,manage:billing"`
}

type UpdateRegion struct {
	ProxyURL           *string `json:"proxyUrl,omitempty" nullable:"true"`
	SSHGatewayURL      *string `json:"sshGatewayUrl,omitempty" nullable:"true"`
	SnapshotManagerURL *string `json:"snapshotManagerUrl,omitempty" nullable:"true"`
	OTelEndpoint       *string `json:"otelEndpoint,omitempty" nullable:"true"`
}

type UpdateSandboxNetworkSettings struct {
	NetworkBlockAll  *bool   `json:"networkBlockAll,omitempty"`
	NetworkAllowList *string `json:"networkAllowList,omitempty"`
	DomainAllowList  *string `json:"domainAllowList,omitempty"`
}

type UpdateSandboxSecrets struct {
	Secrets []map[string]string `json:"secrets" required:"true"`
}

type UpdateSandboxState struct {
	State       string  `json:"state" required:"true" enum:"creating,restoring,destroyed,destroying,started,stopped,starting,stopping,error,build_failed,pending_build,building_snapshot,unknown,pulling_snapshot,archived,archiving,resizing,snapshotting,forking,pausing,paused,resuming"`
	ErrorReason *string `json:"errorReason,omitempty"`
	Recoverable *bool   `json:"recoverable,omitempty"`
}

type UpdateSecret struct {
	Value       *string  `json:"value,omitempty"`
	Description *string  `json:"description,omitempty"`
	Hosts       []string `json:"hosts,omitempty"`
}

type UpdateWarmPool struct {
	Pool float64 `json:"pool" required:"true" minimum:"0"`
}

type URL struct {
	URL string `json:"url" required:"true"`
}

type User struct {
	ID             string          `json:"id" required:"true"`
	Name           string          `json:"name" required:"true"`
	Email          string          `json:"email" required:"true"`
	EmailVerified  bool            `json:"emailVerified" required:"true"`
	PylonEmailHash *string         `json:"pylonEmailHash,omitempty"`
	PublicKeys     []UserPublicKey `json:"publicKeys" required:"true"`
	CreatedAt      string          `json:"createdAt" required:"true"`
}

type UserPublicKey struct {
	Key  string `json:"key" required:"true"`
	Name string `json:"name" required:"true"`
}

type Volume struct {
	ID             string  `json:"id" required:"true"`
	Name           string  `json:"name" required:"true"`
	OrganizationID string  `json:"organizationId" required:"true"`
	State          string  `json:"state" required:"true" enum:"creating,ready,pending_create,pending_delete,deleting,deleted,error"`
	CreatedAt      string  `json:"createdAt" required:"true"`
	UpdatedAt      string  `json:"updatedAt" required:"true"`
	LastUsedAt     *string `json:"lastUsedAt" nullable:"true"`
	ErrorReason    *string `json:"errorReason" required:"true" nullable:"true"`
}

type WarmPool struct {
	ID             string            `json:"id" required:"true"`
	OrganizationID string            `json:"organizationId" required:"true"`
	Snapshot       string            `json:"snapshot" required:"true"`
	Target         string            `json:"target" required:"true"`
	Pool           float64           `json:"pool" required:"true"`
	CurrentSize    float64           `json:"currentSize" required:"true"`
	CPU            float64           `json:"cpu" required:"true"`
	Mem            float64           `json:"mem" required:"true"`
	Disk           float64           `json:"disk" required:"true"`
	OSUser         string            `json:"osUser" required:"true"`
	Env            map[string]string `json:"env" required:"true"`
	ErrorReason    *string           `json:"errorReason" nullable:"true"`
	CreatedAt      string            `json:"createdAt" required:"true"`
	UpdatedAt      string            `json:"updatedAt" required:"true"`
}

type WebhookAppPortalAccess struct {
	Token string `json:"token" required:"true"`
	URL   string `json:"url" required:"true"`
}

type WebhookInitializationStatus struct {
	OrganizationID    string  `json:"organizationId" required:"true"`
	SvixApplicationID *string `json:"svixApplicationId" required:"true" nullable:"true"`
	LastError         *string `json:"lastError" required:"true" nullable:"true"`
	RetryCount        float64 `json:"retryCount" required:"true"`
	CreatedAt         string  `json:"createdAt" required:"true"`
	UpdatedAt         string  `json:"updatedAt" required:"true"`
}

type AdminGetWebhookStatus200Response struct {
	Enabled *bool `json:"enabled,omitempty"`
}
