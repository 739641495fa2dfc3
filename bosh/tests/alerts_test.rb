# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/release'

# Alerts and indicators ask only for metrics that the services send (docs/metrics.md), and
# every alert names its severity and its runbook.
class AlertsTest < Minitest::Test
  METRICS = File.read("#{Release::ROOT}/../docs/metrics.md").scan(/^\| `(\w+)` \|/).flatten
  PAGE = File.read("#{Release::ROOT}/../docs/bosh.md")[/^## Alerts$.*?(?=^## )/m]
  OURS = /\b(?:lock_server|policy_store|syncer|cell_agent|runtime|process)_\w+/
  JOBS = Release.job_names.select { |name| Release.job(name).spec['templates'].value?("config/#{name}.alerts.yml") }

  JOBS.each do |name|
    define_method("test_alerts_of_#{name}") do
      files = Release.render(name, 'minimal')
      rules = YAML.safe_load(files["config/#{name}.alerts.yml"])['groups'].flat_map { |group| group['rules'] }
      rules.each { |rule| check_rule(rule) }
      assert_empty unknown(files['config/indicators.yml']), 'metrics of the indicators'
    end
  end

  private

  def check_rule(rule)
    refute_empty rule['expr'].scan(OURS), rule['alert']
    assert_empty unknown(rule['expr']), rule['alert']
    assert_includes %w[warning critical], rule['labels']['severity'], rule['alert']
    assert_equal 'docs/bosh.md#alerts', rule['annotations']['runbook'], rule['alert']
    refute_empty rule['annotations']['summary'], rule['alert']
    names = [rule['alert'], rule['alert'].sub(/\A.*(?=Certificate)/, '...')]
    assert names.any? { |name| PAGE.include?("`#{name}`") }, "docs/bosh.md says what to do for #{rule['alert']}"
  end

  # The samples of a histogram have a suffix.
  def unknown(text)
    text.scan(OURS).reject { |metric| METRICS.include?(metric.sub(/_(bucket|sum|count)\z/, '')) || METRICS.include?(metric) }
  end
end
