{{- define "aksnet.labels" -}}
app.kubernetes.io/name: aksnet
{{- end }}

{{- define "aksnet.monitorLabels" -}}
{{ include "aksnet.labels" . }}
{{- with .Values.scrape.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Dashboards and alerts tell nodes apart by `instance` (docs/dashboards.md). */}}
{{- define "aksnet.endpoint" -}}
- port: metrics
  path: /metrics
  interval: {{ .Values.scrape.interval }}
  relabelings:
    - sourceLabels: [__meta_kubernetes_pod_node_name]
      targetLabel: instance
{{- end }}

{{- define "aksnet.setting" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "float64" . }}{{ printf "%.0f" . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}
