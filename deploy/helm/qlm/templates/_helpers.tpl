{{- define "qlm.fullname" -}}
{{- if contains "qlm" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-qlm" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "qlm.selector" -}}
app.kubernetes.io/name: qlm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "qlm.labels" -}}
{{ include "qlm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "qlm.secret" -}}
{{ .Values.secrets.existingSecret | default (printf "%s-keys" (include "qlm.fullname" .)) }}
{{- end }}

{{/* The variable that holds a tenant's key. */}}
{{- define "qlm.variable" -}}
QLM_KEY_{{ . | upper | replace "-" "_" | replace "." "_" }}
{{- end }}

{{/* Environment of a part: what all parts show each other, and keys. Called with (context, whether all tenants' keys are wanted). */}}
{{- define "qlm.environment" -}}
{{- $root := index . 0 }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: QLM_SECRET
  valueFrom: {secretKeyRef: {name: {{ include "qlm.secret" $root }}, key: auth}}
{{- range $name, $tenant := $root.Values.tenants }}
{{- if or (index $ 1) $tenant.operator }}
- name: {{ include "qlm.variable" $name }}
  valueFrom: {secretKeyRef: {name: {{ include "qlm.secret" $root }}, key: {{ $name }}}}
{{- end }}
{{- end }}
{{- end }}

{{/* Keys as the configuration has them. Called with (context, whether all tenants are wanted). */}}
{{- define "qlm.keys" -}}
{{- $all := index . 1 }}
{{- range $name, $tenant := (index . 0).Values.tenants }}
{{- if or $all $tenant.operator }}
{{ $name | quote }}: {{ merge (dict "key" (printf "${%s}" (include "qlm.variable" $name))) (omit $tenant "key") | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* What all parts have in common. */}}
{{- define "qlm.common" -}}
{{- with .Values.models }}
models: {{ toJson . }}
{{- end }}
{{- with .Values.sloClasses }}
slo_classes: {{ toJson . }}
{{- end }}
{{- with .Values.defaultSloClass }}
default_slo_class: {{ . }}
{{- end }}
auth: {secret: "${QLM_SECRET}"}
log: {{ toJson .Values.log }}
{{- end }}

{{- define "qlm.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "qlm.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "qlm.place" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end }}
