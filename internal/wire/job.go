package wire

// Payloads of jobs, which are JSON strings in [Job]. A field that is left out or
// null says nothing; what that means is the field's to say.

// JobRegistry is how to get at a registry.
type JobRegistry struct {
	URL      string  `json:"url"`
	Project  *string `json:"project,omitempty"`
	Username *string `json:"username,omitempty"`
	Password *string `json:"password,omitempty"`
}

// JobVolume is a volume to mount.
type JobVolume struct {
	VolumeID  string  `json:"volumeId"`
	MountPath string  `json:"mountPath"`
	Subpath   *string `json:"subpath,omitempty"`
	// ReadOnly and S3 are ours. Without S3 the volume is a directory of the
	// runner's machine.
	ReadOnly bool         `json:"readOnly,omitempty"`
	S3       *JobS3Volume `json:"s3,omitempty"`
}

// JobS3Volume is where the files of a volume are.
type JobS3Volume struct {
	Endpoint     string `json:"endpoint"`
	Region       string `json:"region,omitempty"`
	Bucket       string `json:"bucket"`
	Prefix       string `json:"prefix,omitempty"`
	AccessKey    string `json:"accessKey,omitempty"`
	SecretKey    string `json:"secretKey,omitempty"`
	SessionToken string `json:"sessionToken,omitempty"`
}

// JobNetwork is what a sandbox may reach. A list that is left out is the
// default, one that is empty denies everything; entries are divided by commas.
type JobNetwork struct {
	NetworkBlockAll    *bool   `json:"networkBlockAll,omitempty"`
	NetworkAllowList   *string `json:"networkAllowList,omitempty"`
	DomainAllowList    *string `json:"domainAllowList,omitempty"`
	NetworkLimitEgress *bool   `json:"networkLimitEgress,omitempty"`
}

// JobSandbox is the payload of CREATE_SANDBOX and, with the reasons,
// RECOVER_SANDBOX.
type JobSandbox struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	UserID string `json:"userId"`
	// Snapshot is a reference: that of a snapshot on the runner, or of an image.
	Snapshot string `json:"snapshot"`
	// BackupRef, which is ours, says that Snapshot is a backup of the sandbox.
	BackupRef string `json:"backupRef,omitempty"`
	// Parcel, which is ours, is where the backup is, for any runner.
	Parcel *JobParcel `json:"parcel,omitempty"`
	OSUser string     `json:"osUser"`
	// Quotas are cores, GiB, GiB and GPUs.
	CPUQuota     float64           `json:"cpuQuota"`
	MemoryQuota  float64           `json:"memoryQuota"`
	StorageQuota float64           `json:"storageQuota"`
	GPUQuota     float64           `json:"gpuQuota"`
	Env          map[string]string `json:"env,omitempty"`
	Registry     *JobRegistry      `json:"registry,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Volumes      []JobVolume       `json:"volumes,omitempty"`
	JobNetwork
	OrganizationID string `json:"organizationId,omitempty"`
	RegionID       string `json:"regionId,omitempty"`
	// SkipStart leaves it stopped.
	SkipStart         *bool   `json:"skipStart,omitempty"`
	ErrorReason       *string `json:"errorReason,omitempty"`
	BackupErrorReason *string `json:"backupErrorReason,omitempty"`
}

// JobResize is the payload of RESIZE_SANDBOX; zero fields stay.
type JobResize struct {
	CPU    float64 `json:"cpu"`
	Memory float64 `json:"memory"`
	Disk   float64 `json:"disk"`
}

// JobStop is the payload of STOP_SANDBOX.
type JobStop struct {
	Force bool `json:"force"`
}

// JobFork is the payload of FORK_SANDBOX.
type JobFork struct {
	SourceSandboxID string `json:"sourceSandboxId"`
	NewSandboxID    string `json:"newSandboxId"`
}

// JobSnapshotSandbox is the payload of SNAPSHOT_SANDBOX.
type JobSnapshotSandbox struct {
	SandboxID      string       `json:"sandboxId"`
	Name           string       `json:"name"`
	OrganizationID string       `json:"organizationId"`
	IncludeMemory  bool         `json:"includeMemory"`
	Registry       *JobRegistry `json:"registry,omitempty"`
	// Ref, which is ours, is the reference that the snapshot is to have.
	Ref string `json:"ref,omitempty"`
	// Parcel, which is ours, is where it is to go as well.
	Parcel *JobParcel `json:"parcel,omitempty"`
}

// JobBackup is the payload of CREATE_BACKUP.
type JobBackup struct {
	Snapshot string       `json:"snapshot"`
	Registry *JobRegistry `json:"registry,omitempty"`
	// Parcel, which is ours, is where the backup is to go, in place of staying
	// with the runner.
	Parcel *JobParcel `json:"parcel,omitempty"`
}

// JobParcel is where in the object storage a snapshot is, or is to be, for other
// runners, and who may pull the image that it was made over.
type JobParcel struct {
	S3         JobS3Volume   `json:"s3"`
	Key        string        `json:"key"`
	Registries []JobRegistry `json:"registries,omitempty"`
}

// JobSnapshot is the payload of BUILD_SNAPSHOT, PULL_SNAPSHOT and
// INSPECT_SNAPSHOT_IN_REGISTRY.
type JobSnapshot struct {
	Snapshot       string   `json:"snapshot"`
	Dockerfile     string   `json:"dockerfile,omitempty"`
	OrganizationID string   `json:"organizationId,omitempty"`
	Context        []string `json:"context,omitempty"`
	// ContextURLs, which is ours, says where the archives of Context are, in the
	// same order, for runners without an object storage of their own.
	ContextURLs            []string      `json:"contextUrls,omitempty"`
	PushToInternalRegistry bool          `json:"pushToInternalRegistry,omitempty"`
	SourceRegistries       []JobRegistry `json:"sourceRegistries,omitempty"`
	Registry               *JobRegistry  `json:"registry,omitempty"`
	DestinationRegistry    *JobRegistry  `json:"destinationRegistry,omitempty"`
	DestinationRef         string        `json:"destinationRef,omitempty"`
	NewTag                 string        `json:"newTag,omitempty"`
	// Parcel, which is ours, is where the snapshot is in place of an image.
	Parcel       *JobParcel `json:"parcel,omitempty"`
	SandboxClass string     `json:"sandboxClass,omitempty"`
}

// JobSnapshotResult is what came of a job about a snapshot.
type JobSnapshotResult struct {
	Name       string   `json:"name,omitempty"`
	Ref        string   `json:"ref,omitempty"`
	Hash       string   `json:"hash"`
	SizeGB     float64  `json:"sizeGB"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	// Parcelled, which is ours, says that it is in the object storage.
	Parcelled bool `json:"parcelled,omitempty"`
}

// JobSandboxResult is what came of a job that started a sandbox.
type JobSandboxResult struct {
	DaemonVersion string `json:"daemonVersion"`
}
